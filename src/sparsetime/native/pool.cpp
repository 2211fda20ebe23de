#include "pool.h"

#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace sparsetime {

namespace {

constexpr int SPINS = 4000;  // some tens of microseconds

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

std::atomic<unsigned> forks{0};  // between the first process and this one
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int counted = pthread_atfork(nullptr, nullptr, [] { ++forks; });
#endif

}  // namespace

Pool::Pool(int threads) : forks_(forks) {
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {  // the system gives no more threads
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

bool Pool::forked() const { return forks_ != forks; }

void Pool::stop() {
    if (forked()) {  // nobody is there to be joined, and to destroy what they slept at would be to wait for them
        new (&workers_) std::vector<std::thread>;
        new (&wake_) std::condition_variable;
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        ++round_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

// Memory may be short in any task: others still read what belongs to this frame, so nothing is unwound before all have ended.
void Pool::call(const std::function<void(int)>& task, int index) noexcept {
    try {
        task(index);
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
    }
}

void Pool::run(const std::function<void(int)>& task) {
    if (workers_.empty()) return task(0);
    if (forked()) {
        for (int t = 0; t < threads(); ++t) task(t);
        return;
    }
    task_ = &task;
    busy_ = int(workers_.size());
    ++round_;
    if (sleeping_ > 0) {
        { std::lock_guard<std::mutex> lock(mutex_); }  // whoever is about to sleep has seen the round, or is asleep
        wake_.notify_all();
    }
    call(task, 0);
    // A worker that was not scheduled yet would be waited for in vain by spinning on its core.
    for (int i = 0; busy_ > 0; ++i) {
        if (i < SPINS) relax();
        else std::this_thread::yield();
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Pool::work(int index) {
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && round_ == seen; ++i) relax();
        if (round_ == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleeping_;
            wake_.wait(lock, [&] { return round_ != seen; });
            --sleeping_;
        }
        seen = round_;
        if (stop_) return;
        call(*task_, index);
        --busy_;
    }
}

}  // namespace sparsetime

// A few threads that wait by spinning for a moment, then sleep: a frame has some fifty short parallel sections.

#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sparsetime {

class Pool {
  public:
    // `threads` counts the caller; 1 starts none.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return int(workers_.size()) + 1; }
    // Calls task(0) ... task(threads - 1) at once and waits for all; throws what the first one that threw has thrown. In a
    // process that was forked from that of the threads, to which they did not come along, one after the other.
    void run(const std::function<void(int)>& task);

  private:
    bool forked() const;
    void work(int index);
    void stop();
    void call(const std::function<void(int)>& task, int index) noexcept;

    std::vector<std::thread> workers_;
    unsigned forks_;  // before they were started
    const std::function<void(int)>* task_ = nullptr;
    std::atomic<uint32_t> round_{0};
    std::atomic<int> busy_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleeping_{0};
    std::exception_ptr failure_;
};

}  // namespace sparsetime

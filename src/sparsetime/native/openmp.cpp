#include "openmp.h"

#include <dlfcn.h>

namespace sparsetime {
namespace {

// Looked up in the process, not linked: a linked runtime need not be the one that PyTorch brings. GNU's and LLVM's have these.
struct Runtime {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int (*count)();
    int (*index)();
};

template <typename Function>
void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const Runtime* runtime() {
    static const Runtime found = [] {
        Runtime r;
        find(r.parallel, "GOMP_parallel");
        find(r.count, "omp_get_num_threads");
        find(r.index, "omp_get_thread_num");
        return r;
    }();
    return found.parallel && found.count && found.index ? &found : nullptr;
}

struct Job {
    const Runtime* runtime;
    std::size_t parts;
    const std::function<void(std::size_t)>* task;
};

void share(void* data) {
    const Job& job = *static_cast<const Job*>(data);
    // The runtime may give fewer threads than were asked for.
    const std::size_t count = std::size_t(job.runtime->count()), index = std::size_t(job.runtime->index());
    for (std::size_t i = job.parts * index / count; i < job.parts * (index + 1) / count; ++i) (*job.task)(i);
}

}  // namespace

void parallel(std::size_t parts, std::size_t threads, const std::function<void(std::size_t)>& task) {
    const Runtime* found = threads > 1 && parts > 1 ? runtime() : nullptr;
    if (!found) {
        for (std::size_t i = 0; i < parts; ++i) task(i);
        return;
    }
    // Always as many as PyTorch asks for: with another number the runtime would end and start threads at every call.
    Job job{found, parts, &task};
    found->parallel(share, &job, unsigned(threads), 0);
}

}  // namespace sparsetime

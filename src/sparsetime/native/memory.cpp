#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparsetime {

namespace {

constexpr size_t LINE = 64, LARGE_PAGE = size_t(2) << 20;

std::align_val_t alignment(size_t bytes) { return std::align_val_t(bytes >= LARGE_PAGE ? LARGE_PAGE : LINE); }

}  // namespace

void* allocate(size_t bytes) {
    void* p = ::operator new(bytes, alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Advice: without it all works, slower.
    if (bytes >= LARGE_PAGE) madvise(p, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
    return p;
}

void release(void* p, size_t bytes) noexcept { ::operator delete(p, alignment(bytes)); }

}  // namespace sparsetime

// PyTorch's own threads. A second pool would fight with it: its OpenMP workers spin for milliseconds behind each operation.
#pragma once

#include <cstddef>
#include <functional>

namespace sparsetime {

// Calls task(i) for each i in [0, parts), in contiguous shares, on `threads` threads of the OpenMP runtime that this process
// has loaded; on the calling thread alone where there is none. `task` must not throw.
void parallel(std::size_t parts, std::size_t threads, const std::function<void(std::size_t)>& task);

}  // namespace sparsetime

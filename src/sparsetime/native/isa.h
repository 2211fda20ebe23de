// Which of the instruction sets that kernels are compiled for (CMakeLists.txt) this machine has.

#pragma once

namespace sparsetime {

#if defined(__x86_64__)
inline bool has_v3() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

inline bool has_v4() {
#if defined(SPARSETIME_EMULATED)
    return has_v3();
#endif
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
}

inline bool has_vnni() {
#if defined(SPARSETIME_EMULATED)
    return has_v4();
#endif
    return has_v4() && __builtin_cpu_supports("avx512vnni");
}
#endif

}  // namespace sparsetime

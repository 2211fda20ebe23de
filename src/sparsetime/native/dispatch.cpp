// Which table of kernels to use: the best that the processor has, or what SPARSETIME_ISA names.

#include <cstdlib>
#include <cstring>

#include "isa.h"
#include "kernels.h"

namespace sparsetime {

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_v3;
extern const Kernels kernels_v4;
extern const IntKernels integers_vnni;
#endif

namespace {

const Kernels* tables[5];

const Kernels* find(const char* name) {
    for (int i = 0; tables[i]; ++i)
        if (!std::strcmp(tables[i]->name, name)) return tables[i];
    return nullptr;
}

const Kernels* first() {
    int n = 0;
#if defined(__x86_64__)
    static const Kernels vnni = [] {  // v4, but for products of bytes
        Kernels k = kernels_v4;
        k.name = "vnni";
        k.integers = &integers_vnni;
        return k;
    }();
    if (has_vnni()) tables[n++] = &vnni;
    if (has_v4()) tables[n++] = &kernels_v4;
    if (has_v3()) tables[n++] = &kernels_v3;
#endif
    tables[n++] = &kernels_base;
    tables[n] = nullptr;
    const char* wanted = std::getenv("SPARSETIME_ISA");
    const Kernels* named = wanted ? find(wanted) : nullptr;
    return named ? named : tables[0];
}

const Kernels* current = first();

}  // namespace

const Kernels& kernels() { return *current; }
const Kernels* const* available() { return tables; }

bool select(const char* name) {
    const Kernels* found = find(name);
    if (found) current = found;
    return found != nullptr;
}

}  // namespace sparsetime

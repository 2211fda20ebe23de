// Memory for large arrays, of floats and of codes: on a cache line's start, since a vector across two lines costs twice, and large arrays on large pages
// where the system has them. The state of a stream is tens of megabytes that every frame passes through: with pages of 4 KiB
// much of a frame's time is spent on finding them.

#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace sparsetime {

void* allocate(size_t bytes);
void release(void* p, size_t bytes) noexcept;

template <class T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U>
    Aligned(const Aligned<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(sparsetime::allocate(n * sizeof(T))); }
    void deallocate(T* p, size_t n) noexcept { sparsetime::release(p, n * sizeof(T)); }
    template <class U>
    bool operator==(const Aligned<U>&) const { return true; }
    template <class U>
    bool operator!=(const Aligned<U>&) const { return false; }
};
using Floats = std::vector<float, Aligned<float>>;

template <class V>
size_t bytes_of(const V& v) { return v.capacity() * sizeof(v[0]); }

// A part of an array.
struct Span {
    float* first = nullptr;
    size_t length = 0;
    float* data() const { return first; }
    size_t size() const { return length; }
    float* begin() const { return first; }
    float* end() const { return first + length; }
    float& operator[](size_t i) const { return first[i]; }
};

}  // namespace sparsetime

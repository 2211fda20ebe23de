#include "frame_input.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace sparsetime {

namespace {

constexpr int BLIND = 7;  // frames that are not compared with the one before, after one that differed nearly everywhere

// How the elements of a row lie in memory.
enum class Order { planes, pixels, other };

Order order_of(const Frame& f, int channels) {
    if (f.column == 1) return Order::planes;
    if (f.column == channels && std::abs(f.channel) == 1) return Order::pixels;
    return Order::other;
}

// First and last byte where a and b, which are not the same, differ.
void differing(const uint8_t* a, const uint8_t* b, size_t n, size_t& first, size_t& end) {
    constexpr size_t BLOCK = 256, WORD = 8;
    size_t from = 0, to = n;
    while (from + BLOCK <= to && std::memcmp(a + from, b + from, BLOCK) == 0) from += BLOCK;
    const auto same = [&](size_t at) {
        uint64_t x, y;
        std::memcpy(&x, a + at, WORD);
        std::memcpy(&y, b + at, WORD);
        return x == y;
    };
    while (from + WORD <= n && same(from)) from += WORD;
    while (a[from] == b[from]) ++from;
    while (to >= from + BLOCK && std::memcmp(a + to - BLOCK, b + to - BLOCK, BLOCK) == 0) to -= BLOCK;
    while (to >= WORD && same(to - WORD)) to -= WORD;
    while (a[to - 1] == b[to - 1]) --to;
    first = from;
    end = to;
}

}  // namespace

FrameInput::FrameInput(const Shape& map, Pool& pool) : map_(map), pool_(pool), spans_(2 * size_t(map.height)) {
    if (!map.narrow()) return;
    const size_t row = size_t(map.width) * map.channels;
    lines_.resize(size_t(pool.threads()));
    for (Fetched& line : lines_) {
        line.pixels.resize(row);
        line.planes.resize(row);
        line.swapped.resize(row);
    }
}

void FrameInput::set_camera(Camera camera) {
    camera_ = std::move(camera);
    const size_t C = size_t(map_.channels), row = size_t(map_.width) * C;
    if (!map_.narrow() || camera_.mean.empty()) return;
    mean_.resize(2 * row);
    std_.resize(2 * row);
    for (size_t i = 0; i < row; ++i) {
        const size_t c = i % C, plane = i / size_t(map_.width);
        mean_[i] = camera_.mean[c], std_[i] = camera_.std[c];
        mean_[row + i] = camera_.mean[plane], std_[row + i] = camera_.std[plane];
    }
}

size_t FrameInput::memory_bytes() const {
    size_t n = bytes_of(seen_.bytes) + bytes_of(spans_) + bytes_of(mean_) + bytes_of(std_);
    for (const Fetched& line : lines_) n += bytes_of(line.pixels) + bytes_of(line.planes) + bytes_of(line.swapped);
    return n;
}

void FrameInput::open() {
    for (int y = 0; y < map_.height; ++y) spans_[2 * size_t(y)] = 0, spans_[2 * size_t(y) + 1] = map_.width;
}

bool FrameInput::look(const Frame& frame, bool first, bool keep) {
    const FrameKernels& kernel = *kernels().frames;
    const int C = map_.channels;
    const Order order = order_of(frame, C);
    if (!map_.narrow() || order == Order::other) {
        seen_.valid = false;
        open();
        // Runs of neighbours in memory, or single elements.
        const bool along_row = frame.column == 1, along_pixel = !along_row && frame.channel == 1;
        for (int y = 0; y < map_.height; ++y) {
            for (int x = 0; frame.floats && x < (along_row ? 1 : map_.width); ++x)
                for (int c = 0; c < (along_pixel ? 1 : C); ++c)
                    if (!kernel.finite(frame.floats + y * frame.row + x * frame.column + c * frame.channel,
                                       along_row ? map_.width : along_pixel ? C : 1))
                        return false;
        }
        return true;
    }
    const bool planar = order == Order::planes;
    const int pieces = planar ? C : 1, wide = planar ? 1 : C;  // pieces of a row, elements of a pixel in each
    const size_t element = frame.floats ? sizeof(float) : 1;
    const uint8_t* base = frame.floats ? reinterpret_cast<const uint8_t*>(frame.floats) : frame.bytes;
    const int64_t lowest = planar ? 0 : std::min<int64_t>(0, (C - 1) * frame.channel);
    const size_t length = size_t(map_.width) * wide * element;
    const auto piece = [&](int y, int k) {
        return base + (y * frame.row + k * (planar ? frame.channel : 0) + lowest) * int64_t(element);
    };
    const auto kept = [&](int y, int k) { return seen_.bytes.data() + (size_t(y) * pieces + k) * length; };
    if (first) seen_.blind = 0;
    keep = keep && seen_.blind == 0;
    const bool compare = keep && seen_.valid && !first && seen_.layout.column == frame.column &&
                         seen_.layout.channel == frame.channel && !seen_.layout.floats == !frame.floats;
    if (keep) seen_.bytes.resize(length * pieces * size_t(map_.height));
    const size_t pixel = size_t(wide) * element;
    std::atomic<bool> finite{true};
    each_band(false, [&](int, int top, int bottom) {
        for (int y = top; y < bottom && finite; ++y) {
            size_t from = compare ? length : 0, to = compare ? 0 : length;
            if (compare)
                for (int k = 0; k < pieces; ++k) {
                    const uint8_t *now = piece(y, k), *then = kept(y, k);
                    if (std::memcmp(now, then, length) == 0) continue;
                    size_t start, end;
                    differing(now, then, length, start, end);
                    from = std::min(from, start);
                    to = std::max(to, end);
                }
            const int start = int(from / pixel), end = to ? int((to + pixel - 1) / pixel) : start;
            spans_[2 * size_t(y)] = start;
            spans_[2 * size_t(y) + 1] = end;
            for (int k = 0; k < pieces && end > start; ++k) {
                const uint8_t* now = piece(y, k) + size_t(start) * pixel;
                if (frame.floats && !kernel.finite(reinterpret_cast<const float*>(now), (end - start) * wide))
                    finite = false;
                if (keep) std::memcpy(kept(y, k) + size_t(start) * pixel, now, size_t(end - start) * pixel);
            }
        }
    });
    seen_.layout = frame;
    seen_.valid = keep && finite;  // of a frame that is refused only a part was kept
    if (compare) {
        // Where a camera's noise is everywhere there is nothing to be found, and comparing and copying have a price.
        int64_t open = 0;
        for (int y = 0; y < map_.height; ++y) open += spans_[2 * size_t(y) + 1] - spans_[2 * size_t(y)];
        if (4 * open > int64_t(3) * map_.pixels()) seen_.blind = BLIND;
    } else if (seen_.blind > 0) {
        --seen_.blind;
    }
    return finite;
}

// Pixels [from, to) of row y as rows of floats, normalised.
void FrameInput::fetch(const Frame& frame, int y, int from, int to, Fetched& line) const {
    const FrameKernels& kernel = *kernels().frames;
    const int C = map_.channels, n = to - from;
    const int64_t start = y * frame.row + from * frame.column;
    const Order order = order_of(frame, C);
    if (order == Order::other || (order == Order::pixels && frame.floats && frame.channel != 1)) {
        for (int i = 0; i < n; ++i)
            for (int c = 0; c < C; ++c)
                line.pixels[size_t(i * C + c)] = frame.at(start + i * frame.column + c * frame.channel, c, camera_);
        return;
    }
    const bool plain = camera_.mean.empty();
    const auto floats = [&](const uint8_t* in, int constants, int count, float* out) {
        if (plain)
            for (int i = 0; i < count; ++i) out[i] = float(in[i]);
        else kernel.normalise(in, mean_.data() + constants, std_.data() + constants, count, out);
    };
    if (order == Order::planes) {
        const float* planes[NARROW];
        for (int c = 0; c < C; ++c) {
            if (frame.floats) {
                planes[c] = frame.floats + start + c * frame.channel;
                continue;
            }
            float* to_plane = line.planes.data() + size_t(c) * size_t(n);
            floats(frame.bytes + start + c * frame.channel, int(line.pixels.size()) + c * int(line.pixels.size()) / C,
                   n, to_plane);
            planes[c] = to_plane;
        }
        kernel.interleave(planes, C, n, line.pixels.data());
    } else if (frame.floats) {
        std::memcpy(line.pixels.data(), frame.floats + start, size_t(n) * C * sizeof(float));
    } else {
        const uint8_t* in = frame.bytes + start;
        if (frame.channel != 1) {
            kernel.reverse(in - (C - 1), C, n, line.swapped.data());
            in = line.swapped.data();
        }
        floats(in, 0, n * C, line.pixels.data());
    }
}

void FrameInput::each_band(bool looked, const std::function<void(int, int, int)>& body) {
    constexpr int LEAST = 4096;  // pixels that are worth a thread
    const auto pixels = [&](int y) { return looked ? spans_[2 * size_t(y) + 1] - spans_[2 * size_t(y)] : map_.width; };
    int64_t all = 0, before = 0;
    for (int y = 0; y < map_.height; ++y) all += pixels(y);
    const int parts = int(std::max<int64_t>(1, std::min<int64_t>(pool_.threads(), all / LEAST)));
    if (parts == 1) return body(0, 0, map_.height);
    std::vector<int> bounds(size_t(parts) + 1, map_.height);
    bounds[0] = 0;
    for (int y = 0, t = 1; t < parts; ++y) {
        before += pixels(y);
        for (; t < parts && before * parts >= all * t; ++t) bounds[size_t(t)] = y + 1;
    }
    pool_.run([&](int t) {
        if (t < parts) body(t, bounds[size_t(t)], bounds[size_t(t) + 1]);
    });
}

void FrameInput::each_span(const Frame& frame, int thread, int top, int bottom,
                           const std::function<bool(const float*, int, int)>& body) {
    Fetched& line = lines_[size_t(thread)];
    for (int y = top; y < bottom; ++y) {
        const int from = spans_[2 * size_t(y)], to = spans_[2 * size_t(y) + 1];
        if (to <= from) continue;
        fetch(frame, y, from, to, line);
        if (!body(line.pixels.data(), y * map_.width + from, to - from)) return;
    }
}

}  // namespace sparsetime

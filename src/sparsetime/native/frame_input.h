// The frames of a camera: what of them may have changed, and rows of their pixels as floats.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "conv.h"
#include "pool.h"

namespace sparsetime {

// How bytes become the network's input: (x - mean) / std; empty where they are taken as they are.
struct Camera {
    std::vector<float> mean, std;
};

// A frame of floats or of bytes, with strides in elements by channel, row and column.
struct Frame {
    const float* floats;
    const uint8_t* bytes;
    int64_t channel, row, column;
    float at(int64_t i, int c, const Camera& camera) const {
        if (floats) return floats[i];
        const float x = float(bytes[i]);
        return camera.mean.empty() ? x : (x - camera.mean[size_t(c)]) / camera.std[size_t(c)];
    }
};

class FrameInput {
  public:
    FrameInput(const Shape& map, Pool& pool);

    void set_camera(Camera camera);
    const Camera& camera() const { return camera_; }
    // Finds what may have changed since the frame before, all of the `first` one; refuses a frame that is not finite. With `keep` the next
    // one may be compared with it.
    bool look(const Frame& frame, bool first, bool keep);
    // Forgets the frame before.
    void forget() { seen_.valid = false, seen_.blind = 0; }
    // All may have changed.
    void open();
    // Runs body(thread, top, bottom) over bands of rows, one a thread: equal ones, or once the frame has been looked at such that as much in
    // each may have changed.
    void each_band(bool looked, const std::function<void(int, int, int)>& body);
    // Calls body(values, first, pixels) for the pixels of each row of a band that may have changed, as long as it says true. For maps of at
    // most NARROW channels.
    void each_span(const Frame& frame, int thread, int top, int bottom,
                   const std::function<bool(const float*, int, int)>& body);
    size_t memory_bytes() const;

  private:
    struct Fetched {  // one row of pixels, and what it is made of
        Floats pixels, planes;
        std::vector<uint8_t> swapped;
    };
    // The frame before, as it came: what is the same needs no second look. While `blind`, frames are not kept.
    struct Seen {
        std::vector<uint8_t> bytes;
        Frame layout{};
        bool valid = false;
        int blind = 0;
    };
    void fetch(const Frame& frame, int y, int from, int to, Fetched& line) const;

    Shape map_;
    Pool& pool_;
    Camera camera_;
    Seen seen_;
    std::vector<int32_t> spans_;  // by row: pixels [from, to) that may have changed
    std::vector<Fetched> lines_;  // by thread
    Floats mean_, std_;           // of one row of pixels, then of one row of each plane
};

}  // namespace sparsetime

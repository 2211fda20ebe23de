// One linear operation with its state: what the tests look at and engine/crossover.py times. A program is made of the same parts.

#pragma once

#include <memory>
#include <vector>

#include "conv.h"

namespace sparsetime {

// Memory for one Change.
class ChangeBuffer {
  public:
    explicit ChangeBuffer(Shape shape, float fill = 0.0f);
    Change view;

  private:
    Floats rows_, change_;
    std::vector<uint8_t> mask_;
    std::vector<int32_t> active_, tally_;
    std::vector<uint32_t> place_;
};

class Layer {
  public:
    Layer(std::shared_ptr<const Conv> conv, const float* bias, Act act, float act_a, float act_b, Encode encode,
          const float* step, bool step_map);

    // Takes a delta (height, width, channels) as the next input event list and adds it to the input value.
    void set_input(const float* delta);
    // What to leave for the consumer: rows of deltas, events, or (for a consumer that goes dense) neither.
    void run(Path path, bool rows, bool events);

    std::shared_ptr<const Conv> conv;
    ChangeBuffer input, output;
    Floats in_value, z, value;

  private:
    Floats bias_, step_;
    Act act_;
    float act_a_, act_b_;
    Encode encode_;
    bool step_map_;
    std::vector<uint8_t> touched_;
    std::vector<int32_t> list_;
    Workspace workspace_;
};

}  // namespace sparsetime

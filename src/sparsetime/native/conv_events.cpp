// The elements path of a convolution: every event adds its weights to the sums that it reaches, in scratch, a strip of rows at a time.

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "conv.h"

namespace sparsetime {

namespace {

constexpr int RUN_FLOATS = 9 * 1024;     // weights that one sweep over a strip keeps in the first cache
constexpr int RUN_EVENTS = 8;            // a run of fewer costs more than weights that come from the second cache
constexpr int GAP = 8;                   // empty pixels that are cheaper to skip than to pass

}  // namespace

// Every output has one input pixel: its sums stay in registers until they are finished.
void Conv::elements_fused(const Change& change, int first, const int32_t* list, int count, FinishArgs& sink,
                          Workspace& ws) const {
    int32_t* bound = sized(ws.bound, size_t(count) + 1);
    const int64_t start = std::lower_bound(change.place, change.place + change.events,
                                           uint32_t(uint64_t(first) * in.width << in.shift())) -
                          change.place;
    const int32_t* active = std::lower_bound(change.active, change.active + change.active_count, first * in.width);
    const int32_t* tally = change.tally + (active - change.active);
    const int32_t* const active_end = change.active + change.active_count;
    bound[0] = 0;
    // A residual may touch outputs that no event reaches.
    for (int i = 0; i < count; ++i) {
        const bool own = active < active_end && *active == list[i];
        bound[i + 1] = bound[i] + (own ? *tally : 0);
        active += own;
        tally += own;
    }
    sink.pixels = count;
    sink.pixel = list;
    kernels_->encoders->finish_events(
        sink, {change.place + start, change.change + start, (1u << in.shift()) - 1, bound, fused_.data(), in.channels});
}

// A run is what one pixel sends in one block of 1 << shift channels: as few channels as keep their weights near, unless runs would
// be too short. Of groups as few as passes are packed for.
int Conv::run_shift(const Change& change) const {
    int shift = LEAST_SHIFT;
    if (groups_ > 1) return shift;
    while (shift < in.shift() && ((width_ * 9 << (shift + 1)) <= RUN_FLOATS ||
                                  change.events << shift < int64_t(change.active_count) * in.channels * RUN_EVENTS))
        ++shift;
    return shift;
}

// Where the sums of the output under input (y, x) are, in floats from scratch.
int32_t Conv::sums_of(const Strip& s, int y, int x) const {
    return int32_t(ptrdiff_t((rows_.base(y) - s.top) * s.wide + s.left + columns_.base(x)) * width_);
}

// Where the sums that the taps of a pass reach lie from there.
void Conv::slots_of(const Pass& p, const Strip& s, int32_t* slots) const {
    for (int i = 0; i < p.slots; ++i)
        slots[i] = (p.row[i] * s.wide + p.column[i] + (p.first_block + i % p.vectors) * s.region) * width_;
}

// Weights of a block of channels that the outputs of a pass read.
const float* Conv::weights_of(const Pass& p, const Strip& s, int block) const {
    return scatter_.data() + p.w + size_t((block << s.block_shift) - p.in.first) * p.slots * width_;
}

// Events of a 3x3 kernel of stride 1: along the rows, all pixels between those that changed.
void Conv::slide(const Strip& s, Workspace& ws) const {
    // Keys number the runs: those of a row of inputs, and all.
    const int rows = s.last - s.first, keys_x = in.width * s.blocks, keys = rows * keys_x;
    const int shift = in.shift();
    const uint32_t channel_mask = (1u << shift) - 1, block_mask = (1u << std::min(shift, s.block_shift)) - 1;
    const uint32_t base = uint32_t(s.first) * uint32_t(in.width);
    // Where each run ends: the last event of a run leaves its place, runs without events take their neighbour's.
    int32_t* bound = sized(ws.bound, size_t(keys) + 1);
    std::memset(bound, 0, (size_t(keys) + 1) * sizeof(int32_t));
    if (s.blocks == 1)
        for (int e = 0; e < s.events; ++e) bound[(s.place[e] >> shift) - base + 1] = e + 1;
    else
        for (int e = 0; e < s.events; ++e)
            bound[((s.place[e] >> shift) - base) * uint32_t(s.blocks) + ((s.place[e] & channel_mask) >> s.block_shift) +
                  1] = e + 1;
    for (int i = 0, end = 0; i <= keys; ++i) bound[i] = end = std::max(end, bound[i]);
    int32_t* spans = sized(ws.span, size_t(rows) * (in.width + 2));  // by row: count, then (from, to) pairs
    for (int y = s.first; y < s.last; ++y) {
        const uint8_t* mask = s.mask + size_t(y) * in.width;
        int32_t* span = spans + size_t(y - s.first) * (in.width + 2);
        int found = 0, end = -GAP - 1;
        for (int x = 0; x < in.width; ++x) {
            if (!mask[x]) continue;
            if (x - end > GAP) span[1 + 2 * found++] = x;
            end = x + 1;
            span[2 * found] = end;
        }
        span[0] = found;
    }
    int32_t slots[MAX_SLOTS];
    for (const Pass& p : passes_) {
        slots_of(p, s, slots);
        for (int block = p.in.first >> s.block_shift; block << s.block_shift < p.in.end; ++block)
            for (int y = s.first; y < s.last; ++y) {
                const int32_t* span = spans + size_t(y - s.first) * (in.width + 2);
                for (int i = 0; i < span[0]; ++i) {
                    const int from = span[1 + 2 * i];
                    kernels_->slide({s.place, s.change, block_mask, span[2 + 2 * i] - from,
                                     bound + (y - s.first) * keys_x + from * s.blocks + block, s.blocks,
                                     weights_of(p, s, block), s.scratch + sums_of(s, y, from) + slots[8],
                                     ptrdiff_t(s.wide) * width_});
                }
            }
    }
}

// Events of any other kernel, run by run.
void Conv::scatter(const Strip& s, Workspace& ws) const {
    const int phases_y = rows_.phases(), phases_x = columns_.phases(), shift = in.shift();
    const uint32_t channel_mask = (1u << shift) - 1, block_mask = (1u << std::min(shift, s.block_shift)) - 1;
    for (std::vector<Run>& list : ws.runs) list.clear();
    ws.runs.resize(std::max(ws.runs.size(), size_t(phases_y * phases_x * s.blocks)));
    Walk walk(in.width);
    const int key_shift = std::min(shift, s.block_shift);
    for (int e = 0, end; e < s.events; e = end) {
        for (end = e + 1; end < s.events && s.place[end] >> key_shift == s.place[e] >> key_shift;) ++end;
        const int p = int(s.place[e] >> shift);
        walk.to(p);
        const int x = p - walk.start, phase = walk.y % phases_y * phases_x + x % phases_x;
        const int block = int((s.place[e] & channel_mask) >> s.block_shift);
        ws.runs[size_t(phase * s.blocks + block)].push_back({e, end, sums_of(s, walk.y, x)});
    }
    int32_t slots[MAX_SLOTS];
    for (const Pass& p : passes_) {
        slots_of(p, s, slots);
        for (int block = p.in.first >> s.block_shift; block << s.block_shift < p.in.end; ++block) {
            const std::vector<Run>& list = ws.runs[size_t(p.phase * s.blocks + block)];
            kernels_->runs({s.place, s.change, block_mask, int(list.size()), list.data(), weights_of(p, s, block),
                            slots, p.slots, s.scratch});
        }
    }
}

void Conv::elements(const Change& change, int first, int last, const int32_t* list, int count, FinishArgs& sink,
                    Workspace& ws) const {
    if (!has_elements()) throw std::logic_error("this convolution is not computed event by event");
    if (!fused_.empty()) return elements_fused(change, first, list, count, sink, ws);
    const Kernels& k = *kernels_;
    // Scratch covers all outputs that taps can reach, those outside the map too, so that no event needs a test.
    const int left = scratch_.left, wide = scratch_.wide, halo = scratch_.halo, in_rows = scratch_.in_rows,
              scratch_rows = scratch_.rows;
    const int blocks = scratch_.blocks, region = scratch_.region;
    const size_t scratch_size = size_t(region) * blocks * width_;
    if (ws.scratch.size() < scratch_size) ws.scratch.resize(scratch_size, 0.0f);
    float* scratch = ws.scratch.data();
    const int block_shift = run_shift(change), channel_blocks = (in.channels + (1 << block_shift) - 1) >> block_shift;
    const int batch = out.width * scratch_rows;
    int32_t* at = sized(ws.at, size_t(batch));

    // Only inputs that reach rows [first, last).
    const auto low_of = [&](int y) { return rows_.base(y) + row_low_; };
    const auto high_of = [&](int y) { return rows_.base(y) + row_high_; };
    int y0 = 0;
    while (y0 < in.height && high_of(y0) < first) ++y0;
    int y_end = in.height;
    while (y_end > y0 && low_of(y_end - 1) >= last) --y_end;

    const int shift = change.shape.shift();
    const auto event_of_row = [&](int y) {
        return std::lower_bound(change.place, change.place + change.events, uint32_t(uint64_t(y) * in.width << shift)) -
               change.place;
    };
    int64_t event = y0 < in.height ? event_of_row(y0) : change.events;
    bool carried = false;  // scratch holds sums of rows not finished yet
    int top = 0;    // output row of the scratch's first row
    int taken = 0;  // of list
    const auto finish_before = [&](int row, bool sums) {
        while (taken < count && list[taken] < row * out.width) {
            const int32_t* from = list + taken;
            int n = 0;
            while (n < batch && taken < count && list[taken] < row * out.width) {
                const int y = list[taken] / out.width, end = std::min((y + 1) * out.width, row * out.width);
                // A residual may touch outputs that no event reaches: they find zeros in the spare last row.
                const int r = sums && y >= top && y < top + scratch_rows ? y - top : scratch_rows - 1;
                const int start = r * wide + left - y * out.width;
                for (; n < batch && taken < count && list[taken] < end; ++taken)
                    at[n++] = (start + list[taken]) * width_;
            }
            sink.pixels = n;
            sink.pixel = from;
            sink.at = at;
            sink.sum = scratch;
            sink.block = ptrdiff_t(region) * width_;
            sink.clear = true;
            k.encoders->finish(sink);
        }
    };
    for (; y0 < y_end; y0 += in_rows) {
        const int y1 = std::min(y0 + in_rows, y_end);
        const int64_t event_end = y1 == in.height ? change.events : event_of_row(y1);
        if (!carried) top = low_of(y0);
        if (event_end > event) {
            const Strip strip{change.place + event, change.change + event, int(event_end - event), change.mask, y0, y1,
                              block_shift, channel_blocks, scratch, top, left, wide, region};
            if (sliding_) slide(strip, ws);
            else scatter(strip, ws);
            event = event_end;
            carried = true;
        }
        // Rows that no later input reaches are complete.
        const int complete = y1 == y_end ? last : low_of(y1);
        finish_before(complete, carried);
        if (!carried) continue;
        // What fell outside the map or the rows asked for is dropped; sums of rows still open move to the top.
        const int done = y1 == y_end ? scratch_rows : complete - top;
        const int right = wide - left - out.width;
        for (int b = 0; b < blocks; ++b) {
            float* block = scratch + size_t(b) * region * width_;
            for (int r = 0; r < done; ++r) {
                float* row = block + size_t(r) * wide * width_;
                const int y = top + r;
                if (y < first || y >= last) std::memset(row, 0, size_t(wide) * width_ * sizeof(float));
                else {
                    if (left > 0) std::memset(row, 0, size_t(left) * width_ * sizeof(float));
                    if (right > 0)
                        std::memset(row + size_t(left + out.width) * width_, 0, size_t(right) * width_ * sizeof(float));
                }
            }
            if (done > 0 && done < scratch_rows) {
                const size_t length = size_t(wide) * width_;
                for (int r = 0; r < halo; ++r) {
                    std::memcpy(block + r * length, block + (r + done) * length, length * sizeof(float));
                    std::memset(block + (r + done) * length, 0, length * sizeof(float));
                }
            }
        }
        top = complete;
        carried = y1 < y_end && halo > 0;
    }
    finish_before(last, false);
}

}  // namespace sparsetime

// SPDX-License-Identifier: MIT
// floor: kv. A list of leases is moved, never copied (a vector of a move-only type would claim to be
// copyable).
#include <utility>

#include "kv/pool.h"

namespace tokenspeed {

BlockList take(BlockList& blocks) {
#ifdef WRONG
    return blocks;
#else
    return std::move(blocks);
#endif
}

}  // namespace tokenspeed

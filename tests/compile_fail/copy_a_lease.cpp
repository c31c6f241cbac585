// SPDX-License-Identifier: MIT
// floor: kv. A block lease is moved, never copied: two owners would both give the block back.
#include <utility>

#include "kv/pool.h"

namespace tokenspeed {

BlockLease take(BlockLease& lease) {
#ifdef WRONG
    return BlockLease(lease);
#else
    return BlockLease(std::move(lease));
#endif
}

}  // namespace tokenspeed

// SPDX-License-Identifier: MIT
// floor: kv. Freezing takes the writable lease away: who froze a block cannot go on writing it.
#include <optional>
#include <utility>

#include "kv/prefix_tree.h"

namespace tokenspeed {

std::optional<BlockLease> freeze(PrefixTree& tree, PathLease& path, BlockLease& lease) {
#ifdef WRONG
    return tree.freeze(path, {}, lease);
#else
    return tree.freeze(path, {}, std::move(lease));
#endif
}

}  // namespace tokenspeed

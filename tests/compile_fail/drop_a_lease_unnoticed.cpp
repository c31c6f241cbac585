// SPDX-License-Identifier: MIT
// floor: kv. Freezing may hand the lease back: ignoring that answer is an error.
#include <utility>

#include "kv/prefix_tree.h"

namespace tokenspeed {

bool freeze(PrefixTree& tree, PathLease& path, BlockLease lease) {
#ifdef WRONG
    tree.freeze(path, {}, std::move(lease));
    return true;
#else
    return !tree.freeze(path, {}, std::move(lease)).has_value();
#endif
}

}  // namespace tokenspeed

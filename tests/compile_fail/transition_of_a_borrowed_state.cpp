// SPDX-License-Identifier: MIT
// floor: request. A transition consumes its state: it takes no state that somebody else still holds.
#include <utility>

#include "request/transitions.h"

namespace tokenspeed {

Finished end(Decoding& request) {
#ifdef WRONG
    return on(request, Cancel{});
#else
    return on(std::move(request), Cancel{});
#endif
}

}  // namespace tokenspeed

// SPDX-License-Identifier: MIT
// floor: request. A request that waits has no token to stop on; it can be cancelled.
#include <utility>

#include "request/transitions.h"

namespace tokenspeed {

Finished end(Waiting&& request) {
#ifdef WRONG
    return on(std::move(request), Stop{1, FinishReason::stop});
#else
    return on(std::move(request), Cancel{});
#endif
}

}  // namespace tokenspeed

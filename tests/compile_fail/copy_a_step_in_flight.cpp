// SPDX-License-Identifier: MIT
// floor: sched. A step in flight holds leases: it is moved, never copied.
#include <utility>

#include "sched/in_flight.h"

namespace tokenspeed {

InFlight take(InFlight& flight) {
#ifdef WRONG
    return flight;
#else
    return std::move(flight);
#endif
}

}  // namespace tokenspeed

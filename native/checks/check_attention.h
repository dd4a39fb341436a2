// The attention kernels of every target that this machine can run against plain loops.
#pragma once

namespace tesseral {

// Returns the number of calls with a wrong result, each printed to stderr.
int check_attention();

}  // namespace tesseral

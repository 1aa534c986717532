// Stands in for the device code where the extension was built without CUDA.
#include "device.h"
#include "resident_launch.h"

namespace uot {

std::string cuda_device_report() { return "built without CUDA"; }

namespace resident {
namespace {

const char* const kAbsent = "uotlib was built without CUDA (it is compiled where nvcc is found, see UOTLIB_CUDA)";

}  // namespace

std::string why_not(int) { return kAbsent; }
std::string division(const Request&, int, Division*) { return kAbsent; }
std::string workspace(const Request&, int, std::int64_t*) { return kAbsent; }
std::string launch(const Request&, int, std::uintptr_t, char*, bool*) { return kAbsent; }

}  // namespace resident
}  // namespace uot

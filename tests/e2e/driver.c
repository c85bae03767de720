/* An NVIDIA driver as far as it is asked before a session: libcuda.so.1 with a CUDA version and devices from the
   environment. */
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return flags ? 1 : number("DRIVER_INIT", 0); }

int cuDriverGetVersion(int *version)
{
    *version = number("DRIVER_VERSION", 13000);
    return 0;
}

int cuDeviceGetCount(int *count)
{
    *count = number("DRIVER_DEVICES", 1);
    return 0;
}

int cuDeviceGetName(char *name, int length, int device)
{
    strncpy(name, "Fake", length);
    return device;
}

int cuGetErrorString(int code, const char **text)
{
    *text = code == 999 ? "unknown error" : 0;
    return code == 999 ? 0 : 1;
}

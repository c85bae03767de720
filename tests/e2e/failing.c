/* Loaded before the C library (LD_PRELOAD): the FAIL_AT-th call of a process that changes a file below FAIL_IN fails with
   the error FAIL_WITH, and its path is written to FAIL_TOLD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int calls;

static int fails(int file)
{
    char link[64], path[PATH_MAX];
    const char *folder = getenv("FAIL_IN"), *at = getenv("FAIL_AT"), *with = getenv("FAIL_WITH");
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || !folder || !at || !with)
        return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) || atomic_fetch_add(&calls, 1) + 1 != atoi(at))
        return 0;
    int told = syscall(SYS_openat, AT_FDCWD, getenv("FAIL_TOLD"), O_CREAT | O_WRONLY, 0600);
    syscall(SYS_write, told, path, strlen(path));
    syscall(SYS_close, told);
    errno = atoi(with);
    return 1;
}

#define FAILING(type, name, parameters, arguments, file)               \
    type name parameters                                               \
    {                                                                  \
        static type(*next) parameters;                                 \
        if (!next)                                                     \
            next = (type(*) parameters)dlsym(RTLD_NEXT, #name);        \
        return fails(file) ? -1 : next arguments;                      \
    }

FAILING(ssize_t, write, (int file, const void *bytes, size_t count), (file, bytes, count), file)
FAILING(ssize_t, pwrite, (int file, const void *bytes, size_t count, off_t at), (file, bytes, count, at), file)
FAILING(ssize_t, pwrite64, (int file, const void *bytes, size_t count, off64_t at), (file, bytes, count, at), file)
FAILING(int, ftruncate, (int file, off_t length), (file, length), file)
FAILING(int, ftruncate64, (int file, off64_t length), (file, length), file)
FAILING(int, fsync, (int file), (file), file)
FAILING(int, fdatasync, (int file), (file), file)

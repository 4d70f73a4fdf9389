/* A file system that cannot lock or flush, for LD_PRELOAD: flock, fsync and fdatasync of files below $HOSTILE_FOLDER
   fail with the error number in $HOSTILE_FLOCK or $HOSTILE_FSYNC; everything else is as ever. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(int descriptor, const char *variable) {
    const char *number = getenv(variable), *folder = getenv("HOSTILE_FOLDER");
    char link[64], path[PATH_MAX];
    if (!number || !folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0 ? atoi(number) : 0;
}

#define OR_REFUSED(name, variable, arguments, call)                        \
    int name arguments {                                                   \
        int error = refused(descriptor, variable);                         \
        if (error) { errno = error; return -1; }                           \
        return ((int (*) arguments)dlsym(RTLD_NEXT, #name)) call;          \
    }

OR_REFUSED(flock, "HOSTILE_FLOCK", (int descriptor, int operation), (descriptor, operation))
OR_REFUSED(fsync, "HOSTILE_FSYNC", (int descriptor), (descriptor))
OR_REFUSED(fdatasync, "HOSTILE_FSYNC", (int descriptor), (descriptor))

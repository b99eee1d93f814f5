/* Makes storage fail, from the FAULT_AFTER-th change of files below FAULT_BELOW on, with
   the error number FAULT_ERRNO; a line of FAULT_LOG names each change before.
   Loaded with LD_PRELOAD. Deleting works, as on a full disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int count;

/* Whether this change fails; errno is set then. */
static int fails(const char *what, const char *path) {
  const char *below = getenv("FAULT_BELOW"), *log = getenv("FAULT_LOG");
  char whole[2 * PATH_MAX];
  if (!below || !path) return 0;
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  if (strncmp(path, below, strlen(below))) return 0;
  int number = __sync_add_and_fetch(&count, 1);
  if (log) {
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%d %s %s\n", number, what, path);
    int file = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (file >= 0) {
      REAL(write)(file, line, length);
      close(file);
    }
  }
  const char *after = getenv("FAULT_AFTER");
  if (!after || number < atoi(after)) return 0;
  errno = atoi(getenv("FAULT_ERRNO"));
  return 1;
}

static int fails_at(const char *what, int file) {
  char name[64], path[PATH_MAX];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  ssize_t length = readlink(name, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(what, path);
}

#define CHANGES (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)
#define OPEN(name)                                     \
  int name(const char *path, int flags, ...) {         \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    int mode = va_arg(rest, int);                      \
    va_end(rest);                                      \
    if (flags & CHANGES && fails("open", path)) return -1; \
    return REAL(name)(path, flags, mode);              \
  }
#define OPENAT(name)                                   \
  int name(int at, const char *path, int flags, ...) { \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    int mode = va_arg(rest, int);                      \
    va_end(rest);                                      \
    if (flags & CHANGES && fails("open", path)) return -1; \
    return REAL(name)(at, path, flags, mode);          \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
  if (strpbrk(mode, "wa+") && fails("open", path)) return NULL;
  return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
  if (strpbrk(mode, "wa+") && fails("open", path)) return NULL;
  return REAL(fopen64)(path, mode);
}

#define BY_PATH(name, what, type, ...)                 \
  int name type { return fails(what, path) ? -1 : REAL(name)(__VA_ARGS__); }
BY_PATH(mkdir, "mkdir", (const char *path, mode_t mode), path, mode)
BY_PATH(mkdirat, "mkdir", (int at, const char *path, mode_t mode), at, path, mode)
BY_PATH(rename, "rename", (const char *from, const char *path), from, path)
BY_PATH(renameat, "rename", (int a, const char *from, int b, const char *path), a, from, b, path)
BY_PATH(symlink, "link", (const char *to, const char *path), to, path)
BY_PATH(link, "link", (const char *to, const char *path), to, path)

#define BY_FILE(result, name, what, type, ...)         \
  result name type { return fails_at(what, file) ? -1 : REAL(name)(__VA_ARGS__); }
BY_FILE(ssize_t, write, "write", (int file, const void *data, size_t size), file, data, size)
BY_FILE(ssize_t, pwrite, "write", (int file, const void *data, size_t size, off_t at), file, data, size, at)
BY_FILE(ssize_t, pwrite64, "write", (int file, const void *data, size_t size, off64_t at), file, data, size, at)
BY_FILE(ssize_t, writev, "write", (int file, const struct iovec *data, int count), file, data, count)
BY_FILE(int, fsync, "sync", (int file), file)
BY_FILE(int, fdatasync, "sync", (int file), file)
BY_FILE(int, ftruncate, "truncate", (int file, off_t size), file, size)
BY_FILE(int, ftruncate64, "truncate", (int file, off64_t size), file, size)

/* Makes storage fail, as a full disk does. Loaded with LD_PRELOAD.

   Every call that changes files below FAULT_BELOW is counted. From the A-th on they fail
   with the error number FAULT_ERRNO; with FAULT_ONCE only that one does, with FAULT_ONLY
   only calls of these kinds do (as in "write sync"). FAULT_LOG gets a line for each call:
   its number, kind and path. FAULT_STATE is a file of two ints: the number of calls, which
   processes count together, and A. With A = 0 calls are only counted, with A = -1 nothing
   happens. Deleting and reading always work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *NEVER[] = {"/dev/null", "/proc/", "/memfd:", NULL}; /* no disk */

/* The number of calls, and of the first one that fails. */
static volatile int *state(void) {
  static volatile int *found;
  if (!found) {
    int file = REAL(open)(getenv("FAULT_STATE"), O_RDWR);
    found = mmap(NULL, 2 * sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    REAL(close)(file);
  }
  return found;
}

static void note(const char *log, int number, const char *kind, const char *path) {
  char line[3 * PATH_MAX];
  int length = snprintf(line, sizeof line, "%d %s %s\n", number, kind, path);
  int file = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (file < 0) return;
  REAL(write)(file, line, length);
  REAL(close)(file);
}

/* Whether this call fails; errno is set then. */
static int fails(const char *kind, const char *path) {
  const char *below = getenv("FAULT_BELOW"), *log = getenv("FAULT_LOG");
  const char *only = getenv("FAULT_ONLY");
  char whole[2 * PATH_MAX];
  if (!below || !path) return 0;
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  if (strncmp(path, below, strlen(below))) return 0;
  for (const char **one = NEVER; *one; one++)
    if (!strncmp(path, *one, strlen(*one))) return 0;
  int saved = errno, after = state()[1];
  int number = after < 0 ? 0 : __sync_add_and_fetch(&state()[0], 1);
  if (log && number) note(log, number, kind, path);
  errno = saved;
  if (after < 1 || number < after) return 0;
  if (getenv("FAULT_ONCE") && number > after) return 0;
  if (only && !strstr(only, kind)) return 0;
  errno = atoi(getenv("FAULT_ERRNO"));
  return 1;
}

static int fails_at(const char *kind, int file) {
  char name[64], path[PATH_MAX];
  if (!getenv("FAULT_BELOW")) return 0;
  int saved = errno;
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  ssize_t length = readlink(name, path, sizeof path - 1);
  errno = saved;
  if (length < 0) return 0;
  path[length] = 0;
  return fails(kind, path);
}

static int writes(int flags) {
  return flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY;
}

#define OPEN(name)                                     \
  int name(const char *path, int flags, ...) {         \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    int mode = va_arg(rest, int);                      \
    va_end(rest);                                      \
    if (writes(flags) && fails("open", path)) return -1; \
    return REAL(name)(path, flags, mode);              \
  }
#define OPENAT(name)                                   \
  int name(int at, const char *path, int flags, ...) { \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    int mode = va_arg(rest, int);                      \
    va_end(rest);                                      \
    if (writes(flags) && fails("open", path)) return -1; \
    return REAL(name)(at, path, flags, mode);          \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                    \
  FILE *name(const char *path, const char *mode) {     \
    if (strpbrk(mode, "wa+") && fails("open", path)) return NULL; \
    return REAL(name)(path, mode);                     \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define BY_PATH(name, kind, type, ...)                 \
  int name type { return fails(kind, path) ? -1 : REAL(name)(__VA_ARGS__); }
BY_PATH(creat, "open", (const char *path, mode_t mode), path, mode)
BY_PATH(mkdir, "mkdir", (const char *path, mode_t mode), path, mode)
BY_PATH(mkdirat, "mkdir", (int at, const char *path, mode_t mode), at, path, mode)
BY_PATH(rename, "rename", (const char *from, const char *path), from, path)
BY_PATH(renameat, "rename", (int a, const char *from, int b, const char *path), a, from, b, path)
BY_PATH(renameat2, "rename", (int a, const char *from, int b, const char *path, unsigned flags), a, from, b, path, flags)
BY_PATH(symlink, "link", (const char *to, const char *path), to, path)
BY_PATH(link, "link", (const char *to, const char *path), to, path)
BY_PATH(linkat, "link", (int a, const char *to, int b, const char *path, int flags), a, to, b, path, flags)
BY_PATH(truncate, "truncate", (const char *path, off_t size), path, size)
BY_PATH(truncate64, "truncate", (const char *path, off64_t size), path, size)

#define BY_FILE(result, name, kind, type, ...)         \
  result name type { return fails_at(kind, file) ? -1 : REAL(name)(__VA_ARGS__); }
BY_FILE(ssize_t, write, "write", (int file, const void *data, size_t size), file, data, size)
BY_FILE(ssize_t, pwrite, "write", (int file, const void *data, size_t size, off_t at), file, data, size, at)
BY_FILE(ssize_t, pwrite64, "write", (int file, const void *data, size_t size, off64_t at), file, data, size, at)
BY_FILE(ssize_t, writev, "write", (int file, const struct iovec *data, int count), file, data, count)
BY_FILE(ssize_t, sendfile, "write", (int file, int from, off_t *at, size_t size), file, from, at, size)
BY_FILE(ssize_t, sendfile64, "write", (int file, int from, off64_t *at, size_t size), file, from, at, size)
BY_FILE(ssize_t, copy_file_range, "write", (int from, off64_t *a, int file, off64_t *b, size_t size, unsigned flags), from, a, file, b, size, flags)
BY_FILE(int, fsync, "sync", (int file), file)
BY_FILE(int, fdatasync, "sync", (int file), file)
BY_FILE(int, ftruncate, "truncate", (int file, off_t size), file, size)
BY_FILE(int, ftruncate64, "truncate", (int file, off64_t size), file, size)
BY_FILE(int, fallocate, "write", (int file, int mode, off_t at, off_t size), file, mode, at, size)

/* It is closed in any case, as Linux does. */
int close(int file) {
  int flags = getenv("FAULT_BELOW") ? fcntl(file, F_GETFL) : -1;
  int failed = flags >= 0 && writes(flags) && fails_at("close", file);
  int saved = errno, result = REAL(close)(file);
  if (failed) errno = saved;
  return failed ? -1 : result;
}

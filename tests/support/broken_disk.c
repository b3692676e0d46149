/* A disk that fails, for the files whose name contains `feedback.sqlite`: preloaded before the C library.
 *
 * broken_disk(kind, k) arms it: at the k-th write or flush from now,
 *   1: fsync fails       2: a write is cut short     3: no space is left     4: the power fails: the process ends, and
 *   what was not flushed is taken back, the newest write first.
 * It returns how many writes and flushes there were since it was armed before. Several threads are not supported.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NONE, FSYNC, SHORT, FULL, POWER };
static int kind = NONE, at = 0, count = 0;

struct undo {
    struct undo *before;
    dev_t device;
    ino_t inode;
    int fd; /* a duplicate of our own, or -1: SQLite may have closed its own */
    off_t offset, size;
    ssize_t length;
    char old[];
};
static struct undo *newest = NULL;

static int is_ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strstr(path, "feedback.sqlite") != NULL;
}

int broken_disk(int new_kind, int k) {
    int seen = count;
    kind = new_kind, at = k, count = 0;
    return seen;
}

static void remember(int fd, off_t offset, size_t length) {
    struct stat s;
    if (fstat(fd, &s)) abort();
    struct undo *u = malloc(sizeof *u + length);
    u->before = newest, u->device = s.st_dev, u->inode = s.st_ino, u->offset = offset, u->size = s.st_size;
    u->fd = fd;
    ssize_t (*read_at)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    u->length = read_at(fd, u->old, length, offset);
    newest = u;
}

static void flushed(int fd) {
    struct stat s;
    if (fstat(fd, &s)) abort();
    for (struct undo **u = &newest; *u;) {
        struct undo *each = *u;
        if (each->device == s.st_dev && each->inode == s.st_ino) {
            *u = each->before;
            free(each);
        } else
            u = &each->before;
    }
}

static void power_fails(void) {
    ssize_t (*write_at)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    for (struct undo *u = newest; u; u = u->before) {
        if (u->length > 0 && write_at(u->fd, u->old, u->length, u->offset) != u->length) abort();
        if (ftruncate(u->fd, u->size)) abort();
    }
    _exit(9);
}

static int strikes(int of_kind) {
    if (kind != POWER && kind != of_kind && !(kind == FULL && of_kind == SHORT)) return 0;
    return ++count == at;
}

static ssize_t broken_write(const char *name, int fd, const void *data, size_t length, off_t offset) {
    ssize_t (*write_at)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, name);
    if (kind == NONE || !is_ours(fd)) return write_at(fd, data, length, offset);
    if (strikes(SHORT)) {
        if (kind == POWER) power_fails();
        if (kind == SHORT) {
            write_at(fd, data, length / 2, offset); /* and the rest finds no space */
            count = -1000000;
        }
        errno = ENOSPC;
        return -1;
    }
    if (kind == POWER) remember(fd, offset, length);
    return write_at(fd, data, length, offset);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    return broken_write("pwrite", fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return broken_write("pwrite64", fd, data, length, offset);
}

static int broken_flush(const char *name, int fd) {
    int (*flush)(int) = dlsym(RTLD_NEXT, name);
    if (kind == NONE || !is_ours(fd)) return flush(fd);
    if (strikes(FSYNC)) {
        if (kind == POWER) power_fails();
        errno = EIO;
        return -1;
    }
    int result = flush(fd);
    if (kind == POWER && result == 0) flushed(fd);
    return result;
}

int fsync(int fd) { return broken_flush("fsync", fd); }
int fdatasync(int fd) { return broken_flush("fdatasync", fd); }

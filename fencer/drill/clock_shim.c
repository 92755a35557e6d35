/* Preloaded into a server: adds an offset to its wall clock, and leaves the monotonic clocks alone.
 * The offset, a native int64 of nanoseconds, is read live from the file named by FENCER_CLOCK_FILE.
 * Raw system calls, so that no C library's own wrappers call back into these functions. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

static const int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *name = getenv("FENCER_CLOCK_FILE");
    if (!name) return;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) _exit(97); /* a shim that shifts nothing would pass every test */
    close(fd);
    offset = page;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
    int failed = (int)syscall(SYS_clock_gettime, id, ts);
    if (failed || !offset || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
    int64_t now = ts->tv_sec * SECOND + ts->tv_nsec + __atomic_load_n(offset, __ATOMIC_RELAXED);
    ts->tv_sec = now / SECOND;
    ts->tv_nsec = now % SECOND;
    return 0;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    struct timespec ts;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &ts)) return -1;
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out) *out = ts.tv_sec;
    return ts.tv_sec;
}

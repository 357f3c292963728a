/* Has each fsync of a program take DISK_SLOW_MS longer while the file DISK_SLOW exists.
 * Compile: cc -shared -fPIC -o slowdisk.so slowdisk.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_for_disk(void) {
	const char *file = getenv("DISK_SLOW"), *ms = getenv("DISK_SLOW_MS");
	if (file && ms && access(file, F_OK) == 0)
		usleep(1000 * atoi(ms));
}

int fsync(int fd) {
	wait_for_disk();
	return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
	wait_for_disk();
	return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

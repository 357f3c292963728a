//go:build ignore

/* run INPUT PROGRAM ARGUMENTS... runs a program with a file as its standard input and prints how long it took in nanoseconds and its
 * peak memory in kilobytes.
 *
 * It is small for a reason: Linux counts the memory of whoever starts a program into that program's peak, so a Go program would
 * find nothing smaller than itself. Compile: cc -O2 -o run run.c */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

int main(int argc, char **argv) {
	if (argc < 3)
		return 2;
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, argv[1], O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
	struct timespec start, end;
	struct rusage usage;
	pid_t pid;
	int status;
	clock_gettime(CLOCK_MONOTONIC, &start);
	int failed = posix_spawn(&pid, argv[2], &files, NULL, argv + 2, environ);
	if (failed) {
		fprintf(stderr, "run: %s: %s\n", argv[2], strerror(failed));
		return 2;
	}
	if (wait4(pid, &status, 0, &usage) != pid)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fprintf(stderr, "run: %s: status 0x%x\n", argv[2], status);
		return 1;
	}
	printf("%lld %ld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec, usage.ru_maxrss);
	return 0;
}

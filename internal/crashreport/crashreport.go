//go:build cgo

// Package crashreport writes an error prepared in advance when a module crashes the process.
//
// A module is C code of a vendor in this process: its segmentation fault or abort ends the process. Go would then print
// stacks, which Notation reads as a malformed answer of the plugin. So the error is formatted before the module is
// loaded, and a signal handler that only writes it ends the process with exit code 1. Go's runtime handles faults in
// the code of this program as before.
package crashreport

/*
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

// The linker defines these as the first and last address of this program's code. Modules are loaded elsewhere.
extern char __executable_start, etext;

static char report[8192];
static size_t report_length;
static int report_fd = 2;

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
static struct sigaction go_handlers[64];

#if defined(__linux__) && defined(__x86_64__)
#include <ucontext.h>
#define PC(context) ((char *)((ucontext_t *)(context))->uc_mcontext.gregs[16]) // REG_RIP
#elif defined(__linux__) && defined(__aarch64__)
#include <ucontext.h>
#define PC(context) ((char *)((ucontext_t *)(context))->uc_mcontext.pc)
#endif

static void handler(int sig, siginfo_t *info, void *context) {
#ifdef PC
	char *pc = PC(context);
	if (report_length && (pc < &__executable_start || pc >= &etext)) {
		const char *at = report;
		for (size_t left = report_length; left;) {
			ssize_t n = write(report_fd, at, left);
			if (n < 0 && errno != EINTR)
				break;
			if (n > 0)
				at += n, left -= n;
		}
		_exit(1);
	}
#endif
	if (go_handlers[sig].sa_flags & SA_SIGINFO)
		go_handlers[sig].sa_sigaction(sig, info, context);
}

static void set_report(int fd, const char *text, size_t length) {
	report_length = 0;
	if (length > sizeof report)
		length = sizeof report;
	for (size_t i = 0; i < length; i++)
		report[i] = text[i];
	report_fd = fd;
	report_length = length;
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		struct sigaction old, ours = {0};
		if (sigaction(signals[i], NULL, &old) != 0 || old.sa_sigaction == handler)
			continue;
		ours.sa_sigaction = handler;
		ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART; // on Go's signal stack: the thread's may have overflowed
		ours.sa_mask = old.sa_mask;
		go_handlers[signals[i]] = old;
		sigaction(signals[i], &ours, NULL);
	}
}
*/
import "C"

import (
	"os"
	"unsafe"
)

// format formats an error as the reader of standard error expects it; nil until SetFormat is called.
var format func(error) []byte

// SetFormat sets how Expect formats an error: as JSON of the plugin contract, or as lines for people.
func SetFormat(f func(error) []byte) { format = f }

// output is where Expect writes; nil is standard error.
var output *os.File

// SetOutput sets where Expect writes, for a program whose caller reads failures from another descriptor.
func SetOutput(file *os.File) { output = file }

// Expect prepares err, which is written to standard error, or to the file of SetOutput, if the process crashes outside
// of its own code. It is called before a module is loaded; a later call replaces the error. At most 8 KiB of it are
// written. Without a call of SetFormat before, Expect does nothing.
func Expect(err error) {
	if format == nil {
		return
	}
	text := format(err)
	if len(text) == 0 {
		return
	}
	file := output
	if file == nil {
		file = os.Stderr
	}
	C.set_report(C.int(file.Fd()), (*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)))
}

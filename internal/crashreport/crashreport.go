//go:build cgo

// Package crashreport has the last word when a PKCS#11 module crashes.
//
// A module is a stranger's C code in our process: a segmentation fault or abort in it ends the process, and Go would
// print its own stack, which Notation takes for a malformed plugin. So the words to say are made before the module is
// touched, and a signal handler that does nothing else writes them and exits with code 1. Faults in our own code go on
// to Go's runtime, as ever.
package crashreport

/*
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

// The linker's names for where this program's code begins and ends; a module's is elsewhere.
extern char __executable_start, etext;

static char last_words[8192];
static size_t last_words_length;
static int last_words_fd = 2;

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
	if (last_words_length && (pc < &__executable_start || pc >= &etext)) {
		const char *at = last_words;
		for (size_t left = last_words_length; left;) {
			ssize_t n = write(last_words_fd, at, left);
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

static void guard(int fd, const char *words, size_t length) {
	last_words_length = 0;
	if (length > sizeof last_words)
		length = sizeof last_words;
	for (size_t i = 0; i < length; i++)
		last_words[i] = words[i];
	last_words_fd = fd;
	last_words_length = length;
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		struct sigaction old, ours = {0};
		if (sigaction(signals[i], NULL, &old) != 0 || old.sa_sigaction == handler)
			continue;
		ours.sa_sigaction = handler;
		ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART; // on Go's signal stack: the module's own may be what overflowed
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

// render puts an error in the form that the reader of standard error expects; nil until Report is called.
var render func(error) []byte

// Report sets the form of the last words: the contract's JSON, or lines for people.
func Report(form func(error) []byte) { render = form }

// Expect makes err the last words, to be written to standard error if the process crashes outside its own code. It is
// called before a module is loaded.
func Expect(err error) {
	if render == nil {
		return // nobody reads this process's standard error by a form
	}
	words := render(err)
	if len(words) == 0 {
		return
	}
	C.guard(C.int(os.Stderr.Fd()), (*C.char)(unsafe.Pointer(&words[0])), C.size_t(len(words)))
}

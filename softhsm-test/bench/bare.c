//go:build ignore

/* The least that PKCS#11 asks for one signature, as what the plugin is measured against; and two things that are quickest in C.
 *
 *   bare MODULE PIN sign LABEL ecdsa|pss                    sign a digest once
 *   bare MODULE PIN loop LABEL ecdsa|pss THREADS SECONDS    sign in threads, each in a session of its own, and print how
 *                                                           many signatures a second all of them made
 *   bare MODULE PIN fill COUNT                              make COUNT data objects
 *
 * The module's first slot is used. Compile:
 * cc -O2 -I$(go list -m -f '{{.Dir}}' github.com/miekg/pkcs11) -o bare bare.c -ldl -lpthread */
#define CK_PTR *
#define CK_DEFINE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static CK_FUNCTION_LIST_PTR f;
static CK_SLOT_ID slot;
static CK_OBJECT_HANDLE key;
static CK_MECHANISM mechanism;
static CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, 32};
static CK_BYTE digest[32] = "thirty-two bytes make one digest";
static double seconds;
static pthread_barrier_t ready;

static void die(const char *what, CK_RV rv) {
	fprintf(stderr, "bare: %s: 0x%lX\n", what, rv);
	exit(1);
}

#define CALL(name, ...) do { CK_RV rv = f->name(__VA_ARGS__); if (rv != CKR_OK) die(#name, rv); } while (0)

static CK_SESSION_HANDLE open_session(CK_FLAGS flags) {
	CK_SESSION_HANDLE session;
	CALL(C_OpenSession, slot, CKF_SERIAL_SESSION | flags, NULL, NULL, &session);
	return session;
}

static CK_ULONG sign(CK_SESSION_HANDLE session, CK_BYTE *signature, CK_ULONG room) {
	CALL(C_SignInit, session, &mechanism, key);
	CALL(C_Sign, session, digest, sizeof digest, signature, &room);
	return room;
}

static void find(CK_SESSION_HANDLE session, char *label) {
	CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
	CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, strlen(label)}};
	CK_ULONG count;
	CALL(C_FindObjectsInit, session, template, 2);
	CALL(C_FindObjects, session, &key, 1, &count);
	CALL(C_FindObjectsFinal, session);
	if (count != 1)
		die("no such key", CKR_OK);
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *worker(void *count) {
	CK_BYTE signature[1024];
	CK_SESSION_HANDLE session = open_session(0);
	pthread_barrier_wait(&ready);
	for (double end = now() + seconds; now() < end; ++*(unsigned long *)count)
		sign(session, signature, sizeof signature);
	CALL(C_CloseSession, session);
	return NULL;
}

static void loop(int threads) {
	struct { pthread_t id; unsigned long count; } worker_of[threads];
	pthread_barrier_init(&ready, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		worker_of[i].count = 0;
		if (pthread_create(&worker_of[i].id, NULL, worker, &worker_of[i].count) != 0)
			die("pthread_create", CKR_OK);
	}
	pthread_barrier_wait(&ready);
	double start = now();
	unsigned long total = 0;
	for (int i = 0; i < threads; i++) {
		pthread_join(worker_of[i].id, NULL);
		total += worker_of[i].count;
	}
	printf("%f\n", total / (now() - start));
}

static void fill(CK_SESSION_HANDLE session, int count) {
	for (int i = 0; i < count; i++) {
		CK_OBJECT_CLASS class = CKO_DATA;
		CK_BBOOL yes = CK_TRUE;
		char label[32];
		CK_ULONG length = snprintf(label, sizeof label, "data-%d", i);
		CK_ATTRIBUTE template[] = {
			{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &yes, 1}, {CKA_LABEL, label, length}, {CKA_VALUE, label, length}};
		CK_OBJECT_HANDLE object;
		CALL(C_CreateObject, session, template, 4, &object);
	}
}

int main(int argc, char **argv) {
	if (argc < 5)
		die("arguments are missing", CKR_ARGUMENTS_BAD);
	char *what = argv[3];
	void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
	if (!get || get(&f) != CKR_OK)
		die(argv[1], CKR_GENERAL_ERROR);
	CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
	CALL(C_Initialize, &args);
	CK_SLOT_ID slots[32];
	CK_ULONG count = 32;
	CALL(C_GetSlotList, CK_TRUE, slots, &count);
	slot = slots[0];
	CK_SESSION_HANDLE session = open_session(strcmp(what, "fill") ? 0 : CKF_RW_SESSION);
	CALL(C_Login, session, CKU_USER, (CK_UTF8CHAR_PTR)argv[2], strlen(argv[2]));
	if (!strcmp(what, "fill")) {
		fill(session, atoi(argv[4]));
	} else if (argc > 5) {
		find(session, argv[4]);
		if (!strcmp(argv[5], "pss"))
			mechanism = (CK_MECHANISM){CKM_RSA_PKCS_PSS, &pss, sizeof pss};
		else
			mechanism = (CK_MECHANISM){CKM_ECDSA, NULL, 0};
		if (!strcmp(what, "loop") && argc > 7) {
			seconds = atof(argv[7]);
			loop(atoi(argv[6]));
		} else {
			CK_BYTE signature[1024];
			fwrite(signature, 1, sign(session, signature, sizeof signature), stdout);
		}
	}
	CALL(C_CloseSession, session);
	CALL(C_Finalize, NULL);
	return 0;
}

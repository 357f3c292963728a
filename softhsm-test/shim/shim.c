/* A PKCS#11 module that stands in front of another one (the file SHIM_MODULE names) and misbehaves when told to:
 *
 *   SHIM_NOISE=1          prints a line on descriptors 1 and 2 in every call, as some vendors' libraries do
 *   SHIM_DELAY_MS=5       waits in every call, as a module across a network does
 *   SHIM_LOG=FILE         appends the name of every call to FILE
 *   SHIM_SETTINGS=DIR     a file DIR/NAME holds a variable while the process runs, instead of the environment; and
 *                         DIR/SHIM/NAME, for the copy of this module in a file SHIM
 *   SHIM_FAULT=CALL:HOW   one call fails, or each that uses the device for the CALL *; HOW is a return value as a hexadecimal number, or hang, crash, abort, wrong (another result
 *                         than asked for), short (half of it) or length (it claims 2^40)
 *   SHIM_LOSE=WHAT:N      before every N-th C_Sign of the process, one of these is lost: sessions (with the login), login, device
 *                         (with the sessions; it is back after three calls of C_GetSlotList, in a slot of another number), module (it is
 *                         finalised)
 *   SHIM_FAULT_TIMES=N    only the first N times (default 1; 0 is always)
 *   SHIM_FAULT_AFTER=N    not in the first N calls of the process
 *   SHIM_MAX_SESSIONS=N   CKR_SESSION_COUNT when more than N sessions are open in this process
 *   SHIM_LOCK_DIR=DIR     ... or in all processes that share DIR
 *   SHIM_TOKEN_FLAGS=HEX  set these bits in every token's flags
 *   SHIM_PIN=PIN          types this PIN when a login comes without one, as a person at the token's own pad
 *   SHIM_REFUSE=HEX,...   C_SignInit answers CKR_MECHANISM_INVALID to these mechanisms
 *   SHIM_DER=1            ECDSA signatures come in ASN.1 DER
 *   SHIM_HIDE_PUBLIC=1    no certificate or public key is found before the login
 *   SHIM_LINGER=FILE      C_Finalize leaves a thread behind that takes no signals, and writes into FILE time and again whether it can open
 *                         /etc/passwd, and write /tmp
 *   SHIM_NETHSM=1         the token is a NetHSM's: nothing is found, and nothing signs, but in the session of the login; a search without
 *                         CKA_ID is logged as C_FindObjectsInit_all; the user may make and delete nothing, and a wrong PIN is an unknown user
 *
 * Compile: cc -shared -fPIC -I$(go list -m -f '{{.Dir}}' github.com/miekg/pkcs11) -o shim.so shim.c -ldl */
#define _GNU_SOURCE
#define CK_PTR *
#define CK_DEFINE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST mine;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int fault_count, logged_in;
static CK_SESSION_HANDLE login_session;

/* setting returns the value of a variable, or NULL. Of one in a file, it keeps the last four of each thread. */
static const char *setting(const char *name) {
	static __thread char kept[4][256];
	static __thread unsigned next;
	const char *value = getenv(name), *dir = getenv("SHIM_SETTINGS");
	char own[4096], all[4096];
	Dl_info self;
	const char *file = dir && dladdr(&mine, &self) ? strrchr(self.dli_fname, '/') : NULL;
	int fd = -1;
	if (dir && snprintf(own, sizeof own, "%s%s/%s", dir, file ? file : "", name) < (int)sizeof own &&
		snprintf(all, sizeof all, "%s/%s", dir, name) < (int)sizeof all) {
		if ((fd = open(own, O_RDONLY | O_CLOEXEC)) < 0)
			fd = open(all, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			char *text = kept[next++ % 4];
			ssize_t n = read(fd, text, sizeof kept[0] - 1);
			close(fd);
			text[n < 0 ? 0 : n] = 0;
			value = text;
		}
	}
	return value && *value ? value : NULL;
}

/* how tells the way this call is to fail, or NULL. */
static const char *how(const char *call) {
	const char *fault = setting("SHIM_FAULT"), *colon = fault ? strchr(fault, ':') : NULL;
	if (!colon)
		return NULL;
	if (*fault == '*') {
		if (!strcmp(call, "C_GetFunctionList") || !strcmp(call, "C_Initialize") || !strcmp(call, "C_Finalize"))
			return NULL;
	} else if (strlen(call) != (size_t)(colon - fault) || strncmp(fault, call, colon - fault) != 0)
		return NULL;
	const char *times = setting("SHIM_FAULT_TIMES"), *after = setting("SHIM_FAULT_AFTER");
	int limit = times ? atoi(times) : 1, first = after ? atoi(after) : 0;
	pthread_mutex_lock(&mutex);
	int count = ++fault_count;
	pthread_mutex_unlock(&mutex);
	return count <= first || (limit && count > first + limit) ? NULL : colon + 1;
}

/* before runs ahead of every call; *twist tells the caller to spoil the result. */
static CK_RV before(const char *call, const char **twist) {
	const char *value;
	*twist = NULL;
	if (setting("SHIM_NOISE")) {
		char line[128];
		int n = snprintf(line, sizeof line, "ACME HSM client 7.1: %s, evaluation licence\n", call);
		if (write(1, line, n) + write(2, line, n) < 0)
			return CKR_GENERAL_ERROR;
	}
	if ((value = setting("SHIM_LOG"))) {
		char line[64];
		int n = snprintf(line, sizeof line, "%s\n", call), fd = open(value, O_WRONLY | O_CREAT | O_APPEND, 0600);
		if (fd < 0 || write(fd, line, n) != n)
			return CKR_GENERAL_ERROR;
		close(fd);
	}
	if ((value = setting("SHIM_DELAY_MS")))
		usleep(1000 * atoi(value));
	const char *fault = how(call);
	if (!fault)
		return CKR_OK;
	if (!strcmp(fault, "hang"))
		for (;;)
			pause();
	if (!strcmp(fault, "crash"))
		*(volatile int *)8 = 1;
	if (!strcmp(fault, "abort"))
		abort();
	if (!strcmp(fault, "wrong") || !strcmp(fault, "short") || !strcmp(fault, "length")) {
		*twist = fault;
		return CKR_OK;
	}
	return strtoul(fault, NULL, 16);
}

static void spoil(const char *twist, CK_BYTE *data, CK_ULONG *length) {
	if (!twist)
		return;
	if (!strcmp(twist, "length"))
		*length = 1UL << 40;
	else if (!strcmp(twist, "short"))
		*length /= 2;
	else if (data && *length)
		data[*length - 1] ^= 1;
}

/* calls is held to read by every call, and to write by a loss, which no other call may meet in the middle. */
static pthread_rwlock_t calls = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static int reading(void) { return pthread_rwlock_rdlock(&calls); }
static void read_done(int *failed) { if (!*failed) pthread_rwlock_unlock(&calls); }

/* A device that was lost is away for some calls of C_GetSlotList, and moves to another slot. */
static int away, signatures;
static CK_ULONG moved;
static const CK_ULONG step = 1000;

/* lose takes away what SHIM_LOSE says, before every N-th signature. */
static void lose(CK_SESSION_HANDLE session) {
	const char *what = setting("SHIM_LOSE"), *n = what ? strchr(what, ':') : NULL;
	CK_SESSION_INFO info;
	if (!n)
		return;
	pthread_rwlock_wrlock(&calls);
	if (++signatures % atoi(n + 1) == 0 && real->C_GetSessionInfo(session, &info) == CKR_OK) {
		switch (*what) {
		case 'l':
			real->C_Logout(session);
			break;
		case 'm':
			real->C_Finalize(NULL);
			break;
		case 'd':
			away = 3;
			moved += step;
			/* fall through */
		default:
			real->C_CloseAllSessions(info.slotID);
		}
		logged_in = 0;
	}
	pthread_rwlock_unlock(&calls);
}

/* gone reports whether a call finds no device. C_GetSlotList does, and shows no slot. */
static int gone(const char *call) { return away && strcmp(call, "C_GetSlotList") && strcmp(call, "C_CloseSession") && strcmp(call, "C_Finalize"); }

#define BEFORE(call) \
	const char *twist; \
	CK_RV rv = before(call, &twist); \
	if (rv != CKR_OK) \
		return rv; \
	__attribute__((cleanup(read_done))) int failed = reading(); \
	if (gone(call)) \
		return CKR_DEVICE_REMOVED
/* SLOT finds the real number of a slot. */
#define SLOT(s) \
	if (s < moved) \
		return CKR_SLOT_ID_INVALID; \
	s -= moved
/* PASS defines a call that is forwarded as it is. */
#define PASS(name, params, args) static CK_RV name##_ params { BEFORE(#name); return real->name args; }

PASS(C_Initialize, (CK_VOID_PTR a), (a))
static void *linger(void *results) {
	for (;;) {
		int file = open("/etc/passwd", O_RDONLY), folder = open("/tmp", O_TMPFILE | O_WRONLY, 0600);
		if (dprintf((int)(long)results, "%s %s\n", file < 0 ? "closed" : "open", folder < 0 ? "closed" : "open") < 0)
			return NULL;
		if (file >= 0)
			close(file);
		if (folder >= 0)
			close(folder);
		usleep(10000);
	}
}

static CK_RV C_Finalize_(CK_VOID_PTR a) {
	BEFORE("C_Finalize");
	const char *results = setting("SHIM_LINGER");
	if (results) {
		int fd = open(results, O_WRONLY | O_CREAT | O_APPEND, 0600);
		pthread_t thread;
		sigset_t all, old;
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		if (fd < 0 || pthread_create(&thread, NULL, linger, (void *)(long)fd) != 0)
			return CKR_GENERAL_ERROR;
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	return real->C_Finalize(a);
}
PASS(C_GetInfo, (CK_INFO_PTR i), (i))
/* PASS_SLOT is PASS for a call whose first parameter is a slot. */
#define PASS_SLOT(name, params, args) static CK_RV name##_ params { BEFORE(#name); SLOT(s); return real->name args; }
PASS_SLOT(C_GetSlotInfo, (CK_SLOT_ID s, CK_SLOT_INFO_PTR i), (s, i))
PASS_SLOT(C_GetMechanismList, (CK_SLOT_ID s, CK_MECHANISM_TYPE_PTR m, CK_ULONG_PTR n), (s, m, n))
PASS_SLOT(C_GetMechanismInfo, (CK_SLOT_ID s, CK_MECHANISM_TYPE m, CK_MECHANISM_INFO_PTR i), (s, m, i))
PASS(C_GetSessionInfo, (CK_SESSION_HANDLE s, CK_SESSION_INFO_PTR i), (s, i))
/* WRITE defines one that a NetHSM allows its administrator alone. */
#define WRITE(name, params, args) static CK_RV name##_ params { BEFORE(#name); return setting("SHIM_NETHSM") ? CKR_USER_NOT_LOGGED_IN : real->name args; }
WRITE(C_CreateObject, (CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR o), (s, a, n, o))
WRITE(C_GenerateKeyPair, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_ATTRIBUTE_PTR b, CK_ULONG k, CK_OBJECT_HANDLE_PTR p, CK_OBJECT_HANDLE_PTR q), (s, m, a, n, b, k, p, q))
WRITE(C_DestroyObject, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o), (s, o))

PASS(C_FindObjectsFinal, (CK_SESSION_HANDLE s), (s))
PASS(C_EncryptInit, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k), (s, m, k))
PASS(C_Encrypt, (CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR length), (s, d, n, out, length))
PASS(C_DecryptInit, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k), (s, m, k))
PASS(C_DeriveKey, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR o), (s, m, k, a, n, o))

static CK_RV C_Decrypt_(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR length) {
	BEFORE("C_Decrypt");
	rv = real->C_Decrypt(s, d, n, out, length);
	if (rv == CKR_OK)
		spoil(twist, out, length);
	return rv;
}

static CK_RV C_GetSlotList_(CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR n) {
	BEFORE("C_GetSlotList");
	if (away > 0 && away--) {
		*n = 0;
		return CKR_OK;
	}
	rv = real->C_GetSlotList(present, slots, n);
	for (CK_ULONG i = 0; rv == CKR_OK && slots && i < *n; i++)
		slots[i] += moved;
	if (rv == CKR_OK)
		spoil(twist, NULL, n);
	return rv;
}

static CK_RV C_GetTokenInfo_(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	BEFORE("C_GetTokenInfo");
	SLOT(slot);
	rv = real->C_GetTokenInfo(slot, info);
	const char *flags = setting("SHIM_TOKEN_FLAGS");
	if (rv == CKR_OK && flags)
		info->flags |= strtoul(flags, NULL, 16);
	if (rv == CKR_OK && setting("SHIM_NETHSM")) {
		memset(info->manufacturerID, ' ', sizeof info->manufacturerID);
		memcpy(info->manufacturerID, "Nitrokey GmbH", 13);
		memset(info->model, ' ', sizeof info->model);
		memcpy(info->model, "NetHSM", 6);
	}
	if (rv == CKR_OK && twist)
		memset(info->label, 0xff, sizeof info->label);
	return rv;
}

/* sessions counts the open sessions: files of all processes in SHIM_LOCK_DIR, or a number of this one. */
static int own_sessions;
static int sessions(const char *dir) {
	if (!dir)
		return own_sessions;
	int n = 0;
	DIR *d = opendir(dir);
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] == 's';
	if (d)
		closedir(d);
	return n;
}
static void session_file(char *path, size_t size, const char *dir, CK_SESSION_HANDLE s) {
	snprintf(path, size, "%s/s%d-%lu", dir, (int)getpid(), (unsigned long)s);
}

static CK_RV C_OpenSession_(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session) {
	BEFORE("C_OpenSession");
	SLOT(slot);
	const char *max = setting("SHIM_MAX_SESSIONS"), *dir = setting("SHIM_LOCK_DIR");
	int lock = -1;
	char path[4096];
	pthread_mutex_lock(&mutex);
	if (dir) {
		snprintf(path, sizeof path, "%s/lock", dir);
		lock = open(path, O_RDWR | O_CREAT, 0600);
		if (lock < 0 || lockf(lock, F_LOCK, 0) != 0)
			rv = CKR_GENERAL_ERROR;
	}
	if (rv == CKR_OK && max && sessions(dir) >= atoi(max))
		rv = CKR_SESSION_COUNT;
	if (rv == CKR_OK)
		rv = real->C_OpenSession(slot, flags, app, notify, session);
	if (rv == CKR_OK) {
		own_sessions++;
		if (dir) {
			session_file(path, sizeof path, dir, *session);
			close(open(path, O_WRONLY | O_CREAT, 0600));
		}
	}
	if (lock >= 0)
		close(lock);
	pthread_mutex_unlock(&mutex);
	return rv;
}

static CK_RV C_CloseSession_(CK_SESSION_HANDLE session) {
	BEFORE("C_CloseSession");
	rv = real->C_CloseSession(session);
	const char *dir = setting("SHIM_LOCK_DIR");
	if (dir) {
		char path[4096];
		session_file(path, sizeof path, dir, session);
		unlink(path);
	}
	pthread_mutex_lock(&mutex);
	own_sessions--;
	pthread_mutex_unlock(&mutex);
	return rv;
}

static CK_RV C_Login_(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	BEFORE("C_Login");
	const char *typed = setting("SHIM_PIN");
	if (!pin && typed)
		pin = (CK_UTF8CHAR_PTR)typed, n = strlen(typed);
	rv = real->C_Login(s, u, pin, n);
	if (rv == CKR_OK)
		logged_in = 1, login_session = s;
	return rv == CKR_PIN_INCORRECT && setting("SHIM_NETHSM") ? CKR_USER_TYPE_INVALID : rv;
}

/* stranger reports whether a NetHSM's module knows of no login in a session. */
static int stranger(CK_SESSION_HANDLE s) { return setting("SHIM_NETHSM") && (!logged_in || s != login_session); }

static CK_RV C_Logout_(CK_SESSION_HANDLE s) {
	BEFORE("C_Logout");
	logged_in = 0;
	return real->C_Logout(s);
}

static int hide;
static CK_RV C_FindObjectsInit_(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n) {
	int named = !setting("SHIM_NETHSM");
	for (CK_ULONG i = 0; i < n; i++)
		named |= a[i].type == CKA_ID;
	BEFORE(named ? "C_FindObjectsInit" : "C_FindObjectsInit_all");
	if (stranger(s))
		return CKR_USER_NOT_LOGGED_IN;
	hide = setting("SHIM_HIDE_PUBLIC") && !logged_in;
	return real->C_FindObjectsInit(s, a, n);
}

static CK_RV C_FindObjects_(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR o, CK_ULONG max, CK_ULONG_PTR n) {
	BEFORE("C_FindObjects");
	rv = real->C_FindObjects(s, o, max, n);
	if (rv == CKR_OK && hide)
		*n = 0;
	if (rv == CKR_OK && twist && !strcmp(twist, "wrong") && *n)
		o[0] = 999999;
	else if (rv == CKR_OK)
		spoil(twist, NULL, n);
	return rv;
}

static CK_RV C_GetAttributeValue_(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n) {
	BEFORE("C_GetAttributeValue");
	rv = real->C_GetAttributeValue(s, o, a, n);
	for (CK_ULONG i = 0; twist && i < n; i++)
		if (a[i].ulValueLen != (CK_ULONG)-1)
			spoil(twist, a[i].pValue, &a[i].ulValueLen);
	return rv;
}

static CK_RV C_SignInit_(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k) {
	BEFORE("C_SignInit");
	if (stranger(s))
		return CKR_USER_NOT_LOGGED_IN;
	const char *refuse = setting("SHIM_REFUSE");
	while (refuse && *refuse) {
		char *end;
		if (strtoul(refuse, &end, 16) == m->mechanism)
			return CKR_MECHANISM_INVALID;
		refuse = *end ? end + 1 : end;
	}
	return real->C_SignInit(s, m, k);
}

static CK_ULONG der_integer(CK_BYTE *out, const CK_BYTE *in, CK_ULONG n) {
	while (n > 1 && !*in)
		in++, n--;
	CK_ULONG pad = *in >> 7;
	out[0] = 2, out[1] = n + pad, out[2] = 0;
	memcpy(out + 2 + pad, in, n);
	return 2 + pad + n;
}

static void to_der(CK_BYTE *signature, CK_ULONG *length) {
	CK_BYTE body[160], *at = body;
	at += der_integer(at, signature, *length / 2);
	at += der_integer(at, signature + *length / 2, *length / 2);
	CK_ULONG n = at - body, head = 0;
	signature[head++] = 0x30;
	if (n > 127)
		signature[head++] = 0x81;
	signature[head++] = n;
	memcpy(signature + head, body, n);
	*length = head + n;
}

static CK_RV C_Sign_(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR length) {
	lose(s);
	BEFORE("C_Sign");
	rv = real->C_Sign(s, d, n, out, length);
	if (rv == CKR_OK && out && setting("SHIM_DER"))
		to_der(out, length);
	if (rv == CKR_OK)
		spoil(twist, out, length);
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	BEFORE("C_GetFunctionList");
	const char *path = setting("SHIM_MODULE");
	void *handle = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	CK_C_GetFunctionList get = handle ? (CK_C_GetFunctionList)dlsym(handle, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK)
		return CKR_GENERAL_ERROR;
	mine = *real;
#define MINE(name) mine.name = name##_
	MINE(C_Initialize); MINE(C_Finalize); MINE(C_GetInfo); MINE(C_GetSlotList); MINE(C_GetSlotInfo); MINE(C_GetTokenInfo);
	MINE(C_GetMechanismList); MINE(C_GetMechanismInfo); MINE(C_OpenSession); MINE(C_CloseSession); MINE(C_GetSessionInfo);
	MINE(C_Login); MINE(C_Logout); MINE(C_CreateObject); MINE(C_GetAttributeValue); MINE(C_FindObjectsInit); MINE(C_FindObjects);
	MINE(C_FindObjectsFinal); MINE(C_SignInit); MINE(C_Sign); MINE(C_GenerateKeyPair);
	MINE(C_DestroyObject); MINE(C_EncryptInit); MINE(C_Encrypt); MINE(C_DecryptInit); MINE(C_Decrypt); MINE(C_DeriveKey);
	mine.C_GetFunctionList = C_GetFunctionList;
	*list = twist ? NULL : &mine;
	return CKR_OK;
}

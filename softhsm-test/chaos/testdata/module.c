/* A PKCS#11 module across a network: p11-kit's client, connected to the socket NAME of the folder that the variable
 * CHAOS_MODULES names. Each copy of this library is for one token.
 * Compile: cc -shared -fPIC -DNAME='"hsm-1"' -DCLIENT='"p11-kit-client.so"' -o hsm-1.so module.c -ldl */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define FAILED 5 /* CKR_GENERAL_ERROR */

unsigned long C_GetFunctionList(void **list) {
	const char *dir = getenv("CHAOS_MODULES");
	char address[256];
	void *client;
	unsigned long (*get)(void **);
	if (!dir || snprintf(address, sizeof address, "unix:path=%s/%s", dir, NAME) >= (int)sizeof address ||
		setenv("P11_KIT_SERVER_ADDRESS", address, 1) != 0)
		return FAILED;
	client = dlopen(CLIENT, RTLD_NOW | RTLD_LOCAL);
	get = client ? (unsigned long (*)(void **))dlsym(client, "C_GetFunctionList") : NULL;
	return get ? get(list) : FAILED;
}

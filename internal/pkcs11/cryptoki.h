/* The part of PKCS#11 2.40 that signing and the care of keys need, laid out as the standard has it (sections 3 and 5 of the base
 * specification), and one small function per call. Templates come in flat: types, lengths, and all values in one run of
 * bytes. So no Go pointer is stored in memory that C sees, nothing is allocated here, and nothing can leak. */
#ifndef NOTATION_HSM_CRYPTOKI_H
#define NOTATION_HSM_CRYPTOKI_H

typedef unsigned char byte;
typedef unsigned long ulong_;
typedef ulong_ CK_RV;

typedef struct { byte major, minor; } version;
typedef struct { ulong_ type; void *value; ulong_ length; } attribute;
typedef struct { ulong_ type; void *parameter; ulong_ length; } mechanism;
typedef struct { void *create, *destroy, *lock, *unlock; ulong_ flags; void *reserved; } initialize_args;
typedef struct {
	byte label[32], manufacturer[32], model[16], serial[16];
	ulong_ flags, max_sessions, sessions, max_rw_sessions, rw_sessions, max_pin, min_pin;
	ulong_ total_public, free_public, total_private, free_private;
	version hardware, firmware;
	byte utc_time[16];
} token_info;

typedef struct {
	version cryptoki;
	byte manufacturer[32];
	ulong_ flags;
	byte description[32];
	version library;
} module_info;

typedef struct { ulong_ slot, state, flags, device_error; } session_info;
typedef struct { ulong_ min_key_size, max_key_size, flags; } mechanism_info;

/* CK_FUNCTION_LIST up to the last call used here. `unused` keeps the places of the others. */
typedef void *unused;
typedef struct {
	version v;
	CK_RV (*initialize)(initialize_args *);
	CK_RV (*finalize)(void *);
	CK_RV (*get_info)(module_info *);
	unused get_function_list;
	CK_RV (*get_slot_list)(byte, ulong_ *, ulong_ *);
	unused get_slot_info;
	CK_RV (*get_token_info)(ulong_, token_info *);
	unused get_mechanism_list;
	CK_RV (*get_mechanism_info)(ulong_, ulong_, mechanism_info *);
	unused init_token, init_pin, set_pin;
	CK_RV (*open_session)(ulong_, ulong_, void *, void *, ulong_ *);
	CK_RV (*close_session)(ulong_);
	unused close_all_sessions;
	CK_RV (*get_session_info)(ulong_, session_info *);
	unused get_operation_state, set_operation_state;
	CK_RV (*login)(ulong_, ulong_, byte *, ulong_);
	unused logout;
	CK_RV (*create_object)(ulong_, attribute *, ulong_, ulong_ *);
	unused copy_object;
	CK_RV (*destroy_object)(ulong_, ulong_);
	unused get_object_size;
	CK_RV (*get_attribute_value)(ulong_, ulong_, attribute *, ulong_);
	unused set_attribute_value;
	CK_RV (*find_objects_init)(ulong_, attribute *, ulong_);
	CK_RV (*find_objects)(ulong_, ulong_ *, ulong_, ulong_ *);
	CK_RV (*find_objects_final)(ulong_);
	CK_RV (*encrypt_init)(ulong_, mechanism *, ulong_);
	CK_RV (*encrypt)(ulong_, byte *, ulong_, byte *, ulong_ *);
	unused encrypt_update, encrypt_final;
	CK_RV (*decrypt_init)(ulong_, mechanism *, ulong_);
	CK_RV (*decrypt)(ulong_, byte *, ulong_, byte *, ulong_ *);
	unused decrypt_update, decrypt_final;
	unused digest_init, digest, digest_update, digest_key, digest_final;
	CK_RV (*sign_init)(ulong_, mechanism *, ulong_);
	CK_RV (*sign)(ulong_, byte *, ulong_, byte *, ulong_ *);
	unused sign_update, sign_final, sign_recover_init, sign_recover;
	unused verify_init, verify, verify_update, verify_final, verify_recover_init, verify_recover;
	unused digest_encrypt_update, decrypt_digest_update, sign_encrypt_update, decrypt_verify_update;
	CK_RV (*generate_key)(ulong_, mechanism *, attribute *, ulong_, ulong_ *);
	unused generate_key_pair;
	CK_RV (*wrap_key)(ulong_, mechanism *, ulong_, ulong_, byte *, ulong_ *);
	CK_RV (*unwrap_key)(ulong_, mechanism *, ulong_, byte *, ulong_, attribute *, ulong_, ulong_ *);
	CK_RV (*derive_key)(ulong_, mechanism *, ulong_, attribute *, ulong_, ulong_ *);
} function_list;

/* CK_ECDH1_DERIVE_PARAMS (PKCS#11 2.40 mechanisms, section 2.3.2) */
typedef struct { ulong_ kdf, shared_length; byte *shared; ulong_ public_length; byte *public; } ecdh1_derive_params;

#define MAX_ATTRIBUTES 20

/* The value of an attribute that is a template itself, of two attributes: CKA_PRIVATE and CKA_SENSITIVE, both true. */
static inline byte *private_and_sensitive(void) {
	static byte yes = 1;
	static attribute both[] = {{0x002, &yes, 1}, {0x103, &yes, 1}};
	return (byte *)both;
}

static inline void unflatten(attribute *out, ulong_ n, ulong_ *types, ulong_ *lengths, byte *values) {
	for (ulong_ i = 0; i < n; i++) {
		out[i].type = types[i];
		out[i].value = values;
		out[i].length = lengths[i];
		values += lengths[i];
	}
}

static inline CK_RV call_get_function_list(void *symbol, function_list **list) {
	return ((CK_RV (*)(function_list **))symbol)(list);
}
static inline CK_RV call_initialize(function_list *f, ulong_ flags, void *reserved) {
	initialize_args args = {0};
	args.flags = flags;
	args.reserved = reserved;
	return f->initialize(&args);
}
static inline CK_RV call_finalize(function_list *f) { return f->finalize(0); }
static inline CK_RV call_get_info(function_list *f, module_info *info) { return f->get_info(info); }
static inline CK_RV call_get_slot_list(function_list *f, ulong_ *slots, ulong_ *count) {
	return f->get_slot_list(1, slots, count);
}
static inline CK_RV call_get_token_info(function_list *f, ulong_ slot, token_info *info) {
	return f->get_token_info(slot, info);
}
static inline CK_RV call_open_session(function_list *f, ulong_ slot, ulong_ flags, ulong_ *session) {
	return f->open_session(slot, flags, 0, 0, session);
}
static inline CK_RV call_close_session(function_list *f, ulong_ session) { return f->close_session(session); }
static inline CK_RV call_get_session_info(function_list *f, ulong_ session, session_info *info) {
	return f->get_session_info(session, info);
}
static inline CK_RV call_login(function_list *f, ulong_ session, ulong_ user, byte *pin, ulong_ length) {
	return f->login(session, user, pin, length);
}
static inline CK_RV call_find_objects_init(function_list *f, ulong_ session, ulong_ n, ulong_ *types, ulong_ *lengths, byte *values) {
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	return f->find_objects_init(session, template, n);
}
static inline CK_RV call_find_objects(function_list *f, ulong_ session, ulong_ *objects, ulong_ max, ulong_ *count) {
	return f->find_objects(session, objects, max, count);
}
static inline CK_RV call_find_objects_final(function_list *f, ulong_ session) { return f->find_objects_final(session); }
static inline CK_RV call_get_attribute_value(function_list *f, ulong_ session, ulong_ object, ulong_ n, ulong_ *types, ulong_ *lengths, byte *values) {
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	CK_RV rv = f->get_attribute_value(session, object, template, n);
	for (ulong_ i = 0; i < n; i++)
		lengths[i] = template[i].length;
	return rv;
}
static inline CK_RV call_create_object(function_list *f, ulong_ session, ulong_ n, ulong_ *types, ulong_ *lengths, byte *values, ulong_ *object) {
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	return f->create_object(session, template, n, object);
}
static inline CK_RV call_sign_init(function_list *f, ulong_ session, ulong_ type, byte *parameter, ulong_ length, ulong_ key) {
	mechanism m = {type, length ? parameter : 0, length};
	return f->sign_init(session, &m, key);
}
/* C_SignInit and C_Sign in one step from Go: each step costs as much as a small part of a fast signature. *stage tells which of
 * the two answered. */
static inline CK_RV call_sign_both(function_list *f, ulong_ session, ulong_ type, byte *parameter, ulong_ length, ulong_ key,
		byte *data, ulong_ data_length, byte *signature, ulong_ *signature_length, int *stage) {
	mechanism m = {type, length ? parameter : 0, length};
	*stage = 0;
	CK_RV rv = f->sign_init(session, &m, key);
	if (rv != 0)
		return rv;
	*stage = 1;
	return f->sign(session, data, data_length, signature, signature_length);
}
static inline CK_RV call_sign(function_list *f, ulong_ session, byte *data, ulong_ length, byte *signature, ulong_ *signature_length) {
	return f->sign(session, data, length, signature, signature_length);
}
static inline CK_RV call_destroy_object(function_list *f, ulong_ session, ulong_ object) { return f->destroy_object(session, object); }
static inline CK_RV call_generate_key(function_list *f, ulong_ session, ulong_ type, ulong_ n, ulong_ *types, ulong_ *lengths, byte *values, ulong_ *key) {
	mechanism m = {type, 0, 0};
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	return f->generate_key(session, &m, template, n, key);
}
static inline CK_RV call_wrap_key(function_list *f, ulong_ session, ulong_ type, ulong_ wrapping, ulong_ key, byte *wrapped, ulong_ *length) {
	mechanism m = {type, 0, 0};
	return f->wrap_key(session, &m, wrapping, key, wrapped, length);
}
static inline CK_RV call_unwrap_key(function_list *f, ulong_ session, ulong_ type, ulong_ wrapping, byte *wrapped, ulong_ length,
	ulong_ n, ulong_ *types, ulong_ *lengths, byte *values, ulong_ *key) {
	mechanism m = {type, 0, 0};
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	return f->unwrap_key(session, &m, wrapping, wrapped, length, template, n, key);
}
/* Only asking needs these, so a module that leaves them out is good enough. */
#define FUNCTION_NOT_SUPPORTED 0x54
static inline CK_RV call_get_mechanism_info(function_list *f, ulong_ slot, ulong_ type) {
	mechanism_info info;
	return f->get_mechanism_info ? f->get_mechanism_info(slot, type, &info) : FUNCTION_NOT_SUPPORTED;
}
static inline CK_RV call_encrypt_init(function_list *f, ulong_ session, ulong_ type, byte *parameter, ulong_ length, ulong_ key) {
	mechanism m = {type, length ? parameter : 0, length};
	return f->encrypt_init && f->encrypt ? f->encrypt_init(session, &m, key) : FUNCTION_NOT_SUPPORTED;
}
static inline CK_RV call_encrypt(function_list *f, ulong_ session, byte *data, ulong_ length, byte *encrypted, ulong_ *encrypted_length) {
	return f->encrypt(session, data, length, encrypted, encrypted_length);
}
static inline CK_RV call_decrypt_init(function_list *f, ulong_ session, ulong_ type, byte *parameter, ulong_ length, ulong_ key) {
	mechanism m = {type, length ? parameter : 0, length};
	return f->decrypt_init(session, &m, key);
}
static inline CK_RV call_decrypt(function_list *f, ulong_ session, byte *data, ulong_ length, byte *plain, ulong_ *plain_length) {
	return f->decrypt(session, data, length, plain, plain_length);
}
/* Derives by ECDH with no key derivation function (CKD_NULL, 1): the new key is the shared x coordinate. */
static inline CK_RV call_derive_ecdh(function_list *f, ulong_ session, ulong_ type, byte *public, ulong_ length, ulong_ base,
	ulong_ n, ulong_ *types, ulong_ *lengths, byte *values, ulong_ *key) {
	ecdh1_derive_params parameter = {1, 0, 0, length, public};
	mechanism m = {type, &parameter, sizeof parameter};
	attribute template[MAX_ATTRIBUTES];
	unflatten(template, n, types, lengths, values);
	return f->derive_key(session, &m, base, template, n, key);
}

#endif

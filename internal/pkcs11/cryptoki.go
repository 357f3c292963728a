package pkcs11

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include "cryptoki.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// This file is the only one that calls into a module. Names, constants and errors are those of miekg/pkcs11, but its
// calls are not used here, for three reasons that were measured. It asks for the length of every result first, so a
// signature costs two C_Sign and an attribute two C_GetAttributeValue: on a module across a network that is the price
// of the whole plugin. It believes the lengths it is told, so one wrong count ends the process. And it copies the PIN
// to memory that nobody clears. Here results land in buffers of ours, what a module claims beyond them is an error, and
// every call is made once.

// cryptoki is a loaded module's function list.
type cryptoki struct {
	list *C.function_list
}

type (
	sessionHandle = C.ulong_
	objectHandle  = C.ulong_
)

// wordSize is how many bytes a C unsigned long has, of which the parameters of mechanisms are made.
const wordSize = C.sizeof_ulong_

// errLength is returned when a module claims to have written more than there was room for.
var errLength = errors.New("the module returned an impossible length")

func check(rv C.CK_RV) error {
	if rv == pkcs11.CKR_OK {
		return nil
	}
	return pkcs11.Error(rv)
}

// load opens a shared library and asks it for its functions. The error is the dynamic linker's own explanation. The
// library stays loaded until the process ends: several vendors' libraries crash when they are unloaded.
func load(path string) (*cryptoki, error) {
	runtime.LockOSThread() // dlerror speaks of this thread's last call
	defer runtime.UnlockOSThread()
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	handle := C.dlopen(name, C.RTLD_NOW|C.RTLD_LOCAL)
	if handle == nil {
		return nil, errors.New(C.GoString(C.dlerror()))
	}
	symbol := C.CString("C_GetFunctionList")
	defer C.free(unsafe.Pointer(symbol))
	getFunctionList := C.dlsym(handle, symbol)
	if getFunctionList == nil {
		return nil, errors.New("it has no C_GetFunctionList, so it is not a PKCS#11 module")
	}
	c := &cryptoki{}
	if err := check(C.call_get_function_list(getFunctionList, &c.list)); err != nil {
		return nil, err
	}
	if c.list == nil || c.list.v.major < 2 || c.list.v.major > 3 {
		return nil, errors.New("its function list is not that of PKCS#11 version 2 or 3")
	}
	return c, nil
}

// initialize calls C_Initialize; args is what the module gets in pReserved, NULL when it is empty.
func (c *cryptoki) initialize(flags uint, args string) error {
	var reserved *C.char
	if args != "" {
		reserved = C.CString(args)
		defer C.free(unsafe.Pointer(reserved))
	}
	return check(C.call_initialize(c.list, C.ulong_(flags), unsafe.Pointer(reserved)))
}

// setenv sets an environment variable in C alone. A name with "=" fails.
func setenv(name, value string) error {
	n, v := C.CString(name), C.CString(value)
	defer C.free(unsafe.Pointer(n))
	defer C.free(unsafe.Pointer(v))
	if rv, err := C.setenv(n, v, 1); rv != 0 {
		return err
	}
	return nil
}

func (c *cryptoki) finalize() error { return check(C.call_finalize(c.list)) }

// manufacturer returns who made the module.
func (c *cryptoki) manufacturer() (string, error) {
	var info C.module_info
	if err := check(C.call_get_info(c.list, &info)); err != nil {
		return "", err
	}
	return text(info.manufacturer[:]), nil
}

// slots returns the slots that hold a token.
func (c *cryptoki) slots() ([]uint, error) {
	for room := 32; ; room *= 8 { // one call, unless a module has more slots than any we know
		buffer := make([]C.ulong_, room)
		count := C.ulong_(room)
		err := check(C.call_get_slot_list(c.list, &buffer[0], &count))
		if errors.Is(err, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)) && room < 1<<15 {
			continue
		}
		if err != nil {
			return nil, err
		}
		if count > C.ulong_(room) {
			return nil, errLength
		}
		slots := make([]uint, count)
		for i := range slots {
			slots[i] = uint(buffer[i])
		}
		return slots, nil
	}
}

type tokenInfo struct {
	label, manufacturer, model, serial string
	flags, sessions, maxSessions       uint
}

func (c *cryptoki) tokenInfo(slot uint) (tokenInfo, error) {
	var info C.token_info
	if err := check(C.call_get_token_info(c.list, C.ulong_(slot), &info)); err != nil {
		return tokenInfo{}, err
	}
	return tokenInfo{
		label: text(info.label[:]), manufacturer: text(info.manufacturer[:]), model: text(info.model[:]),
		serial: text(info.serial[:]),
		flags:  uint(info.flags), sessions: uint(info.sessions), maxSessions: uint(info.max_sessions),
	}, nil
}

func (c *cryptoki) openSession(slot uint, flags uint) (sessionHandle, error) {
	var session sessionHandle
	err := check(C.call_open_session(c.list, C.ulong_(slot), C.ulong_(flags|pkcs11.CKF_SERIAL_SESSION), &session))
	return session, err
}

func (c *cryptoki) closeSession(session sessionHandle) error {
	return check(C.call_close_session(c.list, session))
}

// loggedIn reports whether the normal user is logged in, as a session says.
func (c *cryptoki) loggedIn(session sessionHandle) (bool, error) {
	var info C.session_info
	if err := check(C.call_get_session_info(c.list, session, &info)); err != nil {
		return false, err
	}
	return info.state == pkcs11.CKS_RO_USER_FUNCTIONS || info.state == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}

// login logs the user in; an empty PIN is passed as NULL, which has the token ask on its own pad.
func (c *cryptoki) login(session sessionHandle, user uint, pin []byte) error {
	return check(C.call_login(c.list, session, C.ulong_(user), bytePointer(pin), C.ulong_(len(pin))))
}

func (c *cryptoki) findInit(session sessionHandle, template []*pkcs11.Attribute) error {
	types, lengths, values := flatten(template)
	return check(C.call_find_objects_init(c.list, session, C.ulong_(len(template)), &types[0], &lengths[0],
		bytePointer(values)))
}

// find returns at most limit objects of the search that findInit began.
func (c *cryptoki) find(session sessionHandle, limit int) ([]objectHandle, error) {
	objects := make([]objectHandle, limit)
	var count C.ulong_
	if err := check(C.call_find_objects(c.list, session, &objects[0], C.ulong_(limit), &count)); err != nil {
		return nil, err
	}
	if count > C.ulong_(limit) {
		return nil, errLength
	}
	return objects[:count], nil
}

func (c *cryptoki) findFinal(session sessionHandle) error {
	return check(C.call_find_objects_final(c.list, session))
}

// attributeRoom is enough for the attributes of any key Notation uses and for most certificates; attributeLimit is more
// than any certificate needs.
const (
	attributeRoom  = 4096
	attributeLimit = 1 << 20
)

// checkAttributes panics for more attributes than the C side has room for.
func checkAttributes(n int) {
	if n == 0 || n > C.MAX_ATTRIBUTES {
		panic(fmt.Sprintf("a template of %d attributes", n))
	}
}

// attributes reads attributes of an object in one call. Those that the module does not have or does not show are nil in
// the result; that is no error.
func (c *cryptoki) attributes(session sessionHandle, object objectHandle, types ...uint) ([][]byte, error) {
	checkAttributes(len(types))
	for room := attributeRoom; ; room *= 16 {
		flatTypes, lengths := make([]C.ulong_, len(types)), make([]C.ulong_, len(types))
		values := make([]byte, room*len(types))
		for i, t := range types {
			flatTypes[i], lengths[i] = C.ulong_(t), C.ulong_(room)
		}
		err := check(C.call_get_attribute_value(c.list, session, object, C.ulong_(len(types)), &flatTypes[0], &lengths[0],
			bytePointer(values)))
		switch {
		case errors.Is(err, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)) && room < attributeLimit:
			continue
		case errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)),
			errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)):
			// The others are there all the same (PKCS#11 5.7, C_GetAttributeValue).
		case err != nil:
			return nil, err
		}
		found := make([][]byte, len(types))
		for i, length := range lengths {
			if length == ^C.ulong_(0) { // CK_UNAVAILABLE_INFORMATION
				continue
			}
			if length > C.ulong_(room) {
				return nil, errLength
			}
			found[i] = values[i*room : i*room+int(length) : i*room+int(length)]
		}
		return found, nil
	}
}

// privateAndSensitive returns the value of an attribute that is a template itself, which has CKA_PRIVATE and
// CKA_SENSITIVE.
func privateAndSensitive() []byte {
	return C.GoBytes(unsafe.Pointer(C.private_and_sensitive()), 2*C.sizeof_attribute)
}

func (c *cryptoki) createObject(session sessionHandle, template []*pkcs11.Attribute) error {
	types, lengths, values := flatten(template)
	defer clear(values) // one of them may be a key
	var object objectHandle
	return check(C.call_create_object(c.list, session, C.ulong_(len(template)), &types[0], &lengths[0],
		bytePointer(values), &object))
}

func (c *cryptoki) signInit(session sessionHandle, mechanism uint, parameter []byte, key objectHandle) error {
	return check(C.call_sign_init(c.list, session, C.ulong_(mechanism), bytePointer(parameter), C.ulong_(len(parameter)),
		key))
}

// signBoth is signInit and sign, two calls of the module in one step from Go. initialised tells which of them err is
// of.
func (c *cryptoki) signBoth(session sessionHandle, mechanism uint, parameter []byte, key objectHandle,
	data []byte) (signature []byte, initialised bool, err error) {
	signature = make([]byte, signatureRoom)
	length := C.ulong_(len(signature))
	var stage C.int
	err = check(C.call_sign_both(c.list, session, C.ulong_(mechanism), bytePointer(parameter), C.ulong_(len(parameter)),
		key,
		bytePointer(data), C.ulong_(len(data)), bytePointer(signature), &length, &stage))
	if err == nil && length > signatureRoom {
		err = errLength
	}
	if err != nil {
		return nil, stage == 1, err
	}
	return signature[:length], true, nil
}

// signatureRoom holds the signature of an 8192-bit RSA key.
const signatureRoom = 1024

func (c *cryptoki) sign(session sessionHandle, data []byte) ([]byte, error) {
	signature := make([]byte, signatureRoom)
	length := C.ulong_(len(signature))
	if err := check(C.call_sign(c.list, session, bytePointer(data), C.ulong_(len(data)), bytePointer(signature),
		&length)); err != nil {
		return nil, err
	}
	if length > signatureRoom {
		return nil, errLength
	}
	return signature[:length], nil
}

func (c *cryptoki) destroyObject(session sessionHandle, object objectHandle) error {
	return check(C.call_destroy_object(c.list, session, object))
}

// generateKey makes a secret key of a template inside the module.
func (c *cryptoki) generateKey(session sessionHandle, mechanism uint, template []*pkcs11.Attribute) (objectHandle,
	error) {
	types, lengths, values := flatten(template)
	var key objectHandle
	err := check(C.call_generate_key(c.list, session, C.ulong_(mechanism), C.ulong_(len(template)), &types[0], &lengths[0],
		bytePointer(values), &key))
	return key, err
}

// wrappedRoom holds an 8192-bit RSA key, wrapped.
const wrappedRoom = 8192

// wrapKey returns a key encrypted under another, which the module does inside.
func (c *cryptoki) wrapKey(session sessionHandle, mechanism uint, wrapping, key objectHandle) ([]byte, error) {
	wrapped := make([]byte, wrappedRoom)
	length := C.ulong_(len(wrapped))
	if err := check(C.call_wrap_key(c.list, session, C.ulong_(mechanism), wrapping, key, bytePointer(wrapped),
		&length)); err != nil {
		return nil, err
	}
	if length > wrappedRoom {
		return nil, errLength
	}
	return wrapped[:length], nil
}

// unwrapKey makes a key of a template from what wrapKey returned.
func (c *cryptoki) unwrapKey(session sessionHandle, mechanism uint, wrapping objectHandle, wrapped []byte,
	template []*pkcs11.Attribute) (objectHandle, error) {
	types, lengths, values := flatten(template)
	var key objectHandle
	err := check(C.call_unwrap_key(c.list, session, C.ulong_(mechanism), wrapping, bytePointer(wrapped),
		C.ulong_(len(wrapped)),
		C.ulong_(len(template)), &types[0], &lengths[0], bytePointer(values), &key))
	return key, err
}

// hasMechanism fails with CKR_MECHANISM_INVALID when the token does not list a mechanism.
func (c *cryptoki) hasMechanism(slot, mechanism uint) error {
	return check(C.call_get_mechanism_info(c.list, C.ulong_(slot), C.ulong_(mechanism)))
}

// encryptInit begins an encryption; parameter is the mechanism's, as the C structure has it.
func (c *cryptoki) encryptInit(session sessionHandle, mechanism uint, parameter []byte, key objectHandle) error {
	return check(C.call_encrypt_init(c.list, session, C.ulong_(mechanism), bytePointer(parameter),
		C.ulong_(len(parameter)), key))
}

// endEncryption ends the encryption that encryptInit began, by encrypting something that nobody needs.
func (c *cryptoki) endEncryption(session sessionHandle) error {
	encrypted := make([]byte, signatureRoom)
	length := C.ulong_(len(encrypted))
	return check(C.call_encrypt(c.list, session, bytePointer([]byte{0}), 1, bytePointer(encrypted), &length))
}

// decryptInit begins a decryption; parameter is the mechanism's, as the C structure has it.
func (c *cryptoki) decryptInit(session sessionHandle, mechanism uint, parameter []byte, key objectHandle) error {
	return check(C.call_decrypt_init(c.list, session, C.ulong_(mechanism), bytePointer(parameter),
		C.ulong_(len(parameter)), key))
}

// decrypt ends the decryption that decryptInit began. What it returns is never longer than data, as with RSA.
func (c *cryptoki) decrypt(session sessionHandle, data []byte) ([]byte, error) {
	plain := make([]byte, len(data))
	length := C.ulong_(len(plain))
	if err := check(C.call_decrypt(c.list, session, bytePointer(data), C.ulong_(len(data)), bytePointer(plain),
		&length)); err != nil {
		return nil, err
	}
	if length > C.ulong_(len(plain)) {
		return nil, errLength
	}
	return plain[:length], nil
}

// deriveECDH makes a secret key of a template from the shared x coordinate of a private key and a public point.
func (c *cryptoki) deriveECDH(session sessionHandle, mechanism uint, base objectHandle, point []byte,
	template []*pkcs11.Attribute) (objectHandle, error) {
	types, lengths, values := flatten(template)
	var key objectHandle
	err := check(C.call_derive_ecdh(c.list, session, C.ulong_(mechanism), bytePointer(point), C.ulong_(len(point)), base,
		C.ulong_(len(template)), &types[0], &lengths[0], bytePointer(values), &key))
	return key, err
}

func bytePointer(b []byte) *C.byte {
	return (*C.byte)(unsafe.Pointer(unsafe.SliceData(b)))
}

func flatten(template []*pkcs11.Attribute) (types, lengths []C.ulong_, values []byte) {
	checkAttributes(len(template))
	for _, a := range template {
		types = append(types, C.ulong_(a.Type))
		lengths = append(lengths, C.ulong_(len(a.Value)))
		values = append(values, a.Value...)
	}
	return types, lengths, values
}

// text reads one of PKCS#11's fixed-length texts.
func text(field []C.byte) string { return unpad(unsafe.Slice((*byte)(&field[0]), len(field))) }

// unpad removes the padding of PKCS#11's fixed-length text: blanks by the standard, zero bytes in practice.
func unpad(field []byte) string {
	end := len(field)
	for end > 0 && (field[end-1] == ' ' || field[end-1] == 0) {
		end--
	}
	return string(field[:end])
}

//go:build !cgo

package cli

// A PKCS#11 module is C code, which a build without cgo cannot load.
const modules = "without PKCS#11 modules (built with CGO_ENABLED=0): NetHSM keys only"

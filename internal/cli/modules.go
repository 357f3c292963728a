//go:build cgo

package cli

const modules = "with PKCS#11 modules"

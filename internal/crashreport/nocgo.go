//go:build !cgo

// Package crashreport writes an error prepared in advance when a module crashes the process. A build without cgo loads
// no modules.
package crashreport

import "os"

// SetFormat does nothing in a build without cgo.
func SetFormat(func(error) []byte) {}

// SetOutput does nothing in a build without cgo.
func SetOutput(*os.File) {}

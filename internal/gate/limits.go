package gate

import (
	"runtime/debug"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Limits of what is read for one image, beside those of a registry. Whoever can push to a registry or an OCI layout
// controls that data, and none of it is authenticated before a signature has been verified.
const (
	maxSignatures = 50       // signatures that are verified, newest first; the same number as Notation's
	maxListed     = 1000     // signatures that are listed to find the newest
	maxIndex      = 4 << 20  // bytes of an index in an OCI layout
	maxManifest   = 64 << 10 // bytes of the manifest of a signature
	maxEnvelope   = 1 << 20  // bytes of the envelope of a signature
	maxBytes      = 64 << 20 // bytes of all manifests of an OCI layout
	maxNodes      = 10000    // manifests in an OCI layout

	maxBundles        = 20      // bundles of approvals that are fetched from one source
	maxOtherBundles   = 10      // of these, those that do not claim to be for the signature that is verified
	maxBundleManifest = 3 << 19 // bytes of the manifest of a bundle, which has the bundle in base64
)

// Limits of the structure of JSON.
var (
	manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 2000}
	bundleLimits   = bound.Limits{Bytes: maxBundleManifest, Depth: bound.Depth, Elements: 2000}
	// an OCI layout may have many images
	indexLimits = bound.Limits{Bytes: maxIndex, Depth: bound.Depth, Elements: 50000}
)

// memoryTarget is the memory of the Go runtime in bytes. With its code the process stays below 128 MiB.
const memoryTarget = 64 << 20

// LimitMemory sets the memory limit of the Go runtime, which then collects garbage before it grows, unless GOMEMLIMIT
// is lower. What is read for an image fits into it.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) > memoryTarget {
		debug.SetMemoryLimit(memoryTarget)
	}
}

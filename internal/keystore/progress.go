package keystore

import "context"

type progressKey struct{}

// WithProgress returns a context for a long operation, such as listing thousands of keys: the operation calls report
// from time to time, with what it does ("listing keys"), how many objects are done, and how many there are.
func WithProgress(ctx context.Context, report func(activity string, done, total int)) context.Context {
	return context.WithValue(ctx, progressKey{}, report)
}

// ReportProgress calls the function that WithProgress set, if one is.
func ReportProgress(ctx context.Context, activity string, done, total int) {
	if report, ok := ctx.Value(progressKey{}).(func(string, int, int)); ok {
		report(activity, done, total)
	}
}

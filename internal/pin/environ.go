package pin

import (
	"os"
	"slices"
	"strings"
)

// Environ returns the environment for a program that this process starts: without the variable that a source names.
func Environ(source string) []string {
	name, isVariable := strings.CutPrefix(source, "env:")
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return isVariable && strings.HasPrefix(variable, name+"=")
	})
}

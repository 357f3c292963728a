// Command empty does nothing: it is the least that a Go program with C in it can cost.
package main

import "C"

func main() {}

package fair

import "container/list"

// turns are served one after the other: each goes to the end when its turn was.
type turns[T any] struct {
	order *list.List               // of *turn[T]
	of    map[string]*list.Element // by name
}

type turn[T any] struct {
	name string
	what T
}

func newTurns[T any]() turns[T] {
	return turns[T]{list.New(), map[string]*list.Element{}}
}

// add returns what has a name. If nothing has, that is made, and gets the last turn.
func (t *turns[T]) add(name string, create func() T) T {
	if e := t.of[name]; e != nil {
		return e.Value.(*turn[T]).what
	}
	what := create()
	t.of[name] = t.order.PushBack(&turn[T]{name, what})
	return what
}

// next returns whose turn it is.
func (t *turns[T]) next() T {
	e := t.order.Front()
	t.order.MoveToBack(e)
	return e.Value.(*turn[T]).what
}

func (t *turns[T]) remove(name string) {
	t.order.Remove(t.of[name])
	delete(t.of, name)
}

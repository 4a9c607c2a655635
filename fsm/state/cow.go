package state

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

const degree = 32

// owner marks the trees that one Txn has cloned and may write to.
type owner struct {
	live  bool     // the Txn has not ended: its trees still change
	final bool     // nothing is ever taken back
	undo  []func() // what takes the newest command's writes back, oldest first
}

// onUndo notes how to take a write back, where that may be asked for.
func (o *owner) onUndo(f func()) {
	if !o.final {
		o.undo = append(o.undo, f)
	}
}

// cow is a btree that is shared by all Views until a Txn first writes to it.
type cow[T any] struct {
	tree *btree.BTreeG[T]
	by   *owner
	// Clone writes to the tree that it is called on, and a dry run may clone a
	// View's tree while the state machine clones it, too.
	mu *sync.Mutex
}

func newCow[T any](less btree.LessFunc[T]) cow[T] {
	return cow[T]{tree: btree.NewG(degree, less), mu: new(sync.Mutex)}
}

func (c *cow[T]) write(by *owner) *btree.BTreeG[T] {
	if c.by != by {
		c.mu.Lock()
		c.tree = c.tree.Clone()
		c.mu.Unlock()
		c.by, c.mu = by, new(sync.Mutex)
	}
	return c.tree
}

// stable is a tree to iterate over: whoever changes rows meanwhile, as a command
// may in a loop, changes another.
func (c *cow[T]) stable() *btree.BTreeG[T] {
	if c.by != nil && c.by.live {
		return c.tree.Clone()
	}
	return c.tree
}

// put inserts or replaces an item, and notes how to take that back. (Results with
// names would be captured by reference, and each cost an allocation.)
func (c *cow[T]) put(by *owner, item T) (T, bool) {
	t := c.write(by)
	was, replaced := t.ReplaceOrInsert(item)
	if replaced {
		by.onUndo(func() { t.ReplaceOrInsert(was) })
	} else {
		by.onUndo(func() { t.Delete(item) })
	}
	return was, replaced
}

// del deletes an item, and notes how to take that back.
func (c *cow[T]) del(by *owner, item T) (T, bool) {
	t := c.write(by)
	was, there := t.Delete(item)
	if there {
		by.onUndo(func() { t.ReplaceOrInsert(was) })
	}
	return was, there
}

// lanes is a sum of row hashes: commutative, so that it does not depend on the
// order in which rows came, and subtractable, so that it is kept incrementally.
type lanes [4]uint64

func (l *lanes) add(r lanes) {
	for i := range l {
		l[i] += r[i]
	}
}

func (l *lanes) sub(r lanes) {
	for i := range l {
		l[i] -= r[i]
	}
}

// rowBuffers are for encoding rows that are only hashed.
var rowBuffers = sync.Pool{New: func() any { return new([]byte) }}

// hashRow is of a row's tag and of the encoding that enc appends.
func hashRow(tag byte, enc func([]byte) []byte) lanes {
	b := rowBuffers.Get().(*[]byte)
	*b = enc(append((*b)[:0], tag))
	sum := sha256.Sum256(*b)
	rowBuffers.Put(b)
	var l lanes
	for i := range l {
		l[i] = binary.LittleEndian.Uint64(sum[8*i:])
	}
	return l
}

type record[T any] struct {
	key  string
	val  *T
	hash lanes
	memo atomic.Pointer[any] // what a reader has made of val; see ServerRow
}

// table holds rows by key. T is never changed after put.
type table[T any] struct {
	tag  byte // distinguishes equal rows of different tables in the hash
	rows cow[*record[T]]
	sum  lanes
	enc  func([]byte, *T) []byte // appends
}

func newTable[T any](tag byte, enc func([]byte, *T) []byte) table[T] {
	return table[T]{tag: tag, enc: enc, rows: newCow(func(a, b *record[T]) bool { return a.key < b.key })}
}

func (t *table[T]) hash(val *T) lanes {
	return hashRow(t.tag, func(b []byte) []byte { return t.enc(b, val) })
}

func (t *table[T]) get(key string) *T {
	if r, ok := t.rows.tree.Get(&record[T]{key: key}); ok {
		return r.val
	}
	return nil
}

func (t *table[T]) put(by *owner, key string, val *T) (old *T) {
	old, _ = t.putRecord(by, key, val)
	return old
}

func (t *table[T]) putRecord(by *owner, key string, val *T) (old *T, r *record[T]) {
	r = &record[T]{key: key, val: val, hash: t.hash(val)}
	if was, replaced := t.rows.put(by, r); replaced {
		t.sum.sub(was.hash)
		old = was.val
	}
	t.sum.add(r.hash)
	return old, r
}

func (t *table[T]) del(by *owner, key string) (old *T) {
	if was, ok := t.rows.del(by, &record[T]{key: key}); ok {
		t.sum.sub(was.hash)
		return was.val
	}
	return nil
}

func (t *table[T]) len() int { return t.rows.tree.Len() }

// recompute sums the rows' hashes from scratch.
func (t *table[T]) recompute() lanes {
	var sum lanes
	for v := range t.from("") {
		sum.add(t.hash(v))
	}
	return sum
}

func (t *table[T]) min() *T {
	if r, ok := t.rows.tree.Min(); ok {
		return r.val
	}
	return nil
}

// from yields rows whose key is at least key, ascending.
func (t *table[T]) from(key string) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		t.rows.stable().AscendGreaterOrEqual(&record[T]{key: key}, func(r *record[T]) bool { return yield(r.val) })
	}
}

// prefixed yields rows whose key begins with prefix, ascending.
func (t *table[T]) prefixed(prefix string) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		t.rows.stable().AscendGreaterOrEqual(&record[T]{key: prefix}, func(r *record[T]) bool {
			return strings.HasPrefix(r.key, prefix) && yield(r.val)
		})
	}
}

// entry is one line of an index: a key made by join, and the row it leads to.
type entry struct{ key, id string }

type index struct{ cow[entry] }

func newIndex() index {
	return index{newCow(func(a, b entry) bool {
		if a.key != b.key {
			return a.key < b.key
		}
		return a.id < b.id
	})}
}

// swap moves a row's line from one key to another; "" for none.
func (x *index) swap(by *owner, was, is, id string) {
	if was == is {
		return
	}
	if was != "" {
		x.del(by, entry{was, id})
	}
	if is != "" {
		x.put(by, entry{is, id})
	}
}

// one returns the first row under exactly this key.
func (x *index) one(key string) string {
	if e, ok := x.first(key); ok && e.key == key {
		return e.id
	}
	return ""
}

// first returns the first line whose key is at least key.
func (x *index) first(key string) (first entry, ok bool) {
	x.tree.AscendGreaterOrEqual(entry{key, ""}, func(e entry) bool {
		first, ok = e, true
		return false
	})
	return first, ok
}

// prefixed yields the lines whose key begins with prefix, ascending.
func (x *index) prefixed(prefix string) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		x.stable().AscendGreaterOrEqual(entry{prefix, ""}, func(e entry) bool {
			return strings.HasPrefix(e.key, prefix) && yield(e)
		})
	}
}

// backwards yields the lines whose key begins with prefix, descending.
func (x *index) backwards(prefix string) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		x.stable().DescendLessOrEqual(entry{prefix + "\xff", ""}, func(e entry) bool {
			return strings.HasPrefix(e.key, prefix) && yield(e)
		})
	}
}

// join makes a key of parts; each part but the last is closed by a NUL, so that
// join(a, "") is the prefix of everything under a.
func join(parts ...string) string { return strings.Join(parts, "\x00") }

// be encodes a number so that keys sort as numbers do.
func be(n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return string(b[:])
}

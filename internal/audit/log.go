package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/journal"
)

// Sentinels.
var (
	// ErrInvalid: an argument is malformed or out of range.
	ErrInvalid = errors.New("invalid")
	// ErrFailed: the files cannot be written; the line is not in them, or not for sure. It is tried again once a second.
	ErrFailed = errors.New("the audit cannot be written")
	// ErrClosed: Run has ended.
	ErrClosed = errors.New("the audit has ended")
)

// Limits and defaults of [Config].
const (
	DefaultFileBytes = 64 << 20
	DefaultFileAge   = 24 * time.Hour
	DefaultFiles     = 100
	MinFileBytes     = 64 << 10
	MaxFileBytes     = 1 << 30
	MaxFiles         = 100_000
	minFileAge       = time.Minute
	maxFileAge       = 366 * 24 * time.Hour

	queueBytes = 8 << 20     // of lines that wait for the disk; more wait for their turn
	usualLine  = 320         // bytes
	keepBytes  = 1 << 20     // of a buffer that is used again
	syncEvery  = time.Second // how old what is not synced may be, and how often a failed file is tried again
	headEvery  = 3600        // syncs: how often the log names the head
)

// Config of a [Log]. Zero fields mean the defaults.
type Config struct {
	Dir  string // required; made if its parent is there. It belongs to one process at a time
	Node string // in the first line of each file

	FileBytes int64         // after which a new file is begun
	FileAge   time.Duration // likewise
	Files     int           // that are kept; older ones are removed when a new one is begun

	Key    Key
	FS     journal.FS  // nil: the operating system
	Clock  clock.Clock // nil: the operating system
	Logger hclog.Logger
}

// Validate checks the configuration, and fills in the defaults. Errors match [ErrInvalid].
func (c *Config) Validate() error {
	if c.FileBytes == 0 {
		c.FileBytes = DefaultFileBytes
	}
	if c.FileAge == 0 {
		c.FileAge = DefaultFileAge
	}
	if c.Files == 0 {
		c.Files = DefaultFiles
	}
	if c.FS == nil {
		c.FS = journal.OS()
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	switch {
	case c.Dir == "":
		return fmt.Errorf("%w: audit directory: missing", ErrInvalid)
	case c.FileBytes < MinFileBytes || c.FileBytes > MaxFileBytes:
		return fmt.Errorf("%w: size of an audit file: 64 KiB to 1 GiB", ErrInvalid)
	case c.FileAge < minFileAge || c.FileAge > maxFileAge:
		return fmt.Errorf("%w: age of an audit file: 1 minute to 366 days", ErrInvalid)
	case c.Files < 2 || c.Files > MaxFiles:
		return fmt.Errorf("%w: audit files kept: 2 to %d", ErrInvalid, MaxFiles)
	}
	return nil
}

// Log appends to a chain. See the package comment.
type Log struct {
	cfg  Config
	log  hclog.Logger
	lock io.Closer

	mu     sync.Mutex
	queue  *group
	spare  *group // its buffers are used again
	closed bool
	kick   chan struct{} // there is something in queue

	failed atomic.Pointer[error] // nil: the last write succeeded
	lines  atomic.Uint64
	lost   atomic.Uint64 // lines that are not in the files
	head   atomic.Pointer[Head]
	files  atomic.Int64

	// These belong to the goroutine that writes. Others read file with syncing held, which guards its replacement.
	chain    chain
	file     *file
	told     uint64 // of lost: what lines say
	renew    bool   // the file must not be written any more
	retry    bool   // a second has passed since the last attempt
	out      []byte
	syncing  sync.Mutex
	unsynced atomic.Bool
	unsure   chan error // of the goroutine that syncs
}

// group is lines that are written together.
type group struct {
	contents []byte // one after the other
	ends     []int
	event    Event         // the one that is being made
	done     chan struct{} // closed when err is set
	err      error
}

// Open takes the directory's lock, finds the end of the chain, marks what is torn there, and begins a file if there is none or another key was given. It starts nothing.
// Errors match [ErrInvalid], [journal.ErrLocked] if another process has the directory, or are those of the file system.
func Open(cfg Config) (*Log, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, log: cfg.Logger.Named("audit"), queue: newGroup(), kick: make(chan struct{}, 1), unsure: make(chan error, 1)}
	l.chain.seal = newSeal(cfg.Key)
	if err := cfg.FS.Mkdir(cfg.Dir); err != nil && !exists(err) {
		return nil, fmt.Errorf("audit: %w", err)
	}
	lock, err := cfg.FS.Lock(cfg.Dir+"/lock", true)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	l.lock = lock
	if err := l.resume(); err != nil {
		return nil, errors.Join(fmt.Errorf("audit: %w", err), lock.Close())
	}
	l.tellHead("the audit begins")
	return l, nil
}

func newGroup() *group { return &group{done: make(chan struct{})} }

// Append writes lines, in order and beside those of others, and returns when they are in the file. It sets the times of those that have none. It waits for the disk, and for its turn if
// many wait; when ctx ends meanwhile the lines may still be written. Errors match [ErrFailed], [ErrClosed] or are those of ctx.
func (l *Log) Append(ctx context.Context, events ...Event) error {
	return l.AppendEach(ctx, len(events), func(i int, e *Event) { *e = events[i] })
}

// AppendEach is Append for n lines that are made one by one: line fills in an Event that is empty.
func (l *Log) AppendEach(ctx context.Context, n int, line func(i int, e *Event)) error {
	if n == 0 {
		return nil
	}
	b := buffers.Get().(*group)
	defer buffers.Put(b)
	b.contents, b.ends = slices.Grow(b.contents[:0], min(n*usualLine, keepBytes)), slices.Grow(b.ends[:0], n)
	now := l.cfg.Clock.Now()
	for i := range n {
		b.event = Event{}
		line(i, &b.event)
		if b.event.Time.IsZero() {
			b.event.Time = now
		}
		b.contents = b.event.appendContent(b.contents)
		b.ends = append(b.ends, len(b.contents))
	}
	b.event = Event{}
	err := l.enqueue(ctx, b)
	if cap(b.contents) > keepBytes {
		b.contents = nil
	}
	return err
}

// buffers are groups in which callers make their lines.
var buffers = sync.Pool{New: func() any { return new(group) }}

// enqueue adds lines to the queue and waits until they are written.
func (l *Log) enqueue(ctx context.Context, b *group) error {
	l.mu.Lock()
	for !l.closed && len(l.queue.contents) > queueBytes {
		g := l.queue
		l.mu.Unlock()
		select {
		case <-g.done:
		case <-ctx.Done():
			l.lost.Add(uint64(len(b.ends)))
			return ctx.Err()
		}
		l.mu.Lock()
	}
	if l.closed {
		l.mu.Unlock()
		l.lost.Add(uint64(len(b.ends)))
		return ErrClosed
	}
	g := l.queue
	g.contents, g.ends = slices.Grow(g.contents, len(b.contents)), slices.Grow(g.ends, len(b.ends))
	for _, end := range b.ends {
		g.ends = append(g.ends, len(g.contents)+end)
	}
	g.contents = append(g.contents, b.contents...)
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		// The file may be quick enough to say.
		select {
		case <-g.done:
			return g.err
		default:
			return ctx.Err()
		}
	}
}

// Failed returns why the files cannot be written now; nil if they can, as far as is known. It matches [ErrFailed].
func (l *Log) Failed() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Stats of a [Log].
type Stats struct {
	Lines      uint64 // written by this process
	Lost       uint64 // that could not be written
	Failed     bool   // the files cannot be written now
	Files      int
	QueueBytes int
	Head       Head
}

// Stats returns counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	waiting := len(l.queue.contents)
	l.mu.Unlock()
	return Stats{Lines: l.lines.Load(), Lost: l.lost.Load(), Failed: l.Failed() != nil, Files: int(l.files.Load()), QueueBytes: waiting, Head: *l.head.Load()}
}

// Run writes what is appended until ctx ends, then what is left, and closes the files. It is called once.
func (l *Log) Run(ctx context.Context) error {
	stop := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		l.sync(stop)
		return nil
	})
	l.write(ctx)
	close(stop)
	_ = g.Wait() // it returns nil
	return l.close()
}

// Close gives the files back of a Log that is not run.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	return l.close()
}

func (l *Log) write(ctx context.Context) {
	t := time.NewTicker(syncEvery)
	defer t.Stop()
	for seconds := 1; ; {
		select {
		case <-l.kick:
			l.flush()
		case err := <-l.unsure:
			l.renew = true
			l.fail(err)
		case <-t.C:
			l.retry = true
			l.flush()
			if l.file != nil && l.Failed() == nil && l.due(0) {
				if err := l.rotate(); err != nil {
					l.fail(err)
				}
			}
			if seconds++; seconds%headEvery == 0 {
				l.tellHead("head of the audit")
			}
		case <-ctx.Done():
			l.mu.Lock()
			l.closed = true
			l.mu.Unlock()
			l.flush()
			return
		}
	}
}

// flush writes the queue, and what is to be said about lines that were lost.
func (l *Log) flush() {
	l.mu.Lock()
	g := l.queue
	if len(g.ends) == 0 && l.Failed() == nil && l.told == l.lost.Load() {
		l.mu.Unlock()
		return
	}
	l.queue = newGroup()
	if s := l.spare; s != nil {
		l.queue.contents, l.queue.ends, l.spare = s.contents[:0], s.ends[:0], nil
	}
	l.mu.Unlock()
	if err := l.append(g); err != nil {
		l.lost.Add(uint64(len(g.ends)))
		g.err = err
	}
	close(g.done)
	if cap(g.contents) <= keepBytes {
		l.mu.Lock()
		l.spare = g
		l.mu.Unlock()
	}
	if cap(l.out) > keepBytes {
		l.out = nil
	}
}

func (l *Log) append(g *group) error {
	if failed := l.Failed(); failed != nil {
		if !l.retry {
			return failed
		}
		l.retry = false
		if err := l.resume(); err != nil {
			return l.fail(err)
		}
	}
	if l.due(int64(len(g.contents) + len(g.ends)*tailBytes)) {
		if err := l.rotate(); err != nil {
			return l.fail(err)
		}
	}
	next, lost := l.chain, l.lost.Load()
	b := slices.Grow(l.out[:0], len(g.contents)+len(g.ends)*(tailBytes+16))
	if lost > l.told {
		e := Event{Kind: "lost", Time: l.cfg.Clock.Now(), Count: lost - l.told}
		b = next.sealed(b, e.appendContent(nil))
	}
	from := 0
	for _, end := range g.ends {
		b = next.sealed(b, g.contents[from:end])
		from = end
	}
	l.out = b
	if len(b) == 0 {
		l.recovered()
		return nil
	}
	if _, err := l.file.WriteAt(b, l.file.size); err != nil {
		return l.fail(err)
	}
	l.file.size += int64(len(b))
	l.lines.Add(next.n - l.chain.n)
	l.chain, l.told = next, lost
	l.unsynced.Store(true)
	l.head.Store(&Head{next.n, next.sum})
	l.recovered()
	return nil
}

// fail notes that the files cannot be written.
func (l *Log) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if l.failed.Swap(&err) == nil {
		l.log.Error("the audit cannot be written", "error", err)
	}
	return err
}

func (l *Log) recovered() {
	if l.failed.Swap(nil) != nil {
		l.log.Warn("the audit is written again", "lost", l.lost.Load())
	}
}

func (l *Log) tellHead(what string) {
	if h := l.head.Load(); h != nil {
		l.log.Info(what, "head", h.String())
	}
}

// sync makes what was written durable once a second, beside the writes: who waits for a line does not wait for that.
func (l *Log) sync(stop <-chan struct{}) {
	t := time.NewTicker(syncEvery)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		l.syncing.Lock()
		var err error
		if l.file != nil && l.unsynced.Swap(false) {
			err = l.file.Sync()
		}
		l.syncing.Unlock()
		if err != nil {
			select {
			case l.unsure <- err:
			case <-stop:
				return
			}
		}
	}
}

func (l *Log) close() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	var err error
	if l.file != nil {
		err = errors.Join(l.file.Sync(), l.file.Close())
		l.file = nil
		l.tellHead("the audit ends")
	}
	if err != nil {
		err = fmt.Errorf("audit: %w", err)
	}
	return errors.Join(err, l.lock.Close())
}

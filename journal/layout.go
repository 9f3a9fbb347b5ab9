package journal

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Names in the directory.
const (
	walDir        = "wal"
	expDir        = "exp"
	quarantineDir = "quarantine"
	lockName      = "LOCK"
	formatName    = "FORMAT"
	walSuffix     = ".wal"
	expSuffix     = ".seg"
	buriedSuffix  = ".expired" // what the file held has expired; the name stands until the log says so too
	tempSuffix    = ".tmp"
)

const formatVersion = 1

// Incarnation is a random number made with a directory, and made anew when what it holds may have
// become less: by Repair and by RestoreBackup.
type Incarnation [16]byte

func (i Incarnation) String() string { return hex.EncodeToString(i[:]) }

func newIncarnation() (i Incarnation) {
	rand.Read(i[:])
	return i
}

// format is the content of FORMAT.
type format struct {
	recordSize  int
	keyID       uint64
	incarnation Incarnation
}

func (f format) encode() []byte {
	text := fmt.Sprintf("journal %d\nrecord %d\nkey %016x\nincarnation %s\n", formatVersion, f.recordSize, f.keyID, f.incarnation)
	return fmt.Appendf([]byte(text), "crc32c %08x\n", crc32.Checksum([]byte(text), castagnoli))
}

func parseFormat(b []byte) (format, error) {
	var f format
	var version int
	first, _, _ := strings.Cut(string(b), "\n")
	if _, err := fmt.Sscanf(first, "journal %d", &version); err != nil {
		return f, fmt.Errorf("%w: not a FORMAT file", errFormat)
	}
	if version > formatVersion {
		return f, fmt.Errorf("%w: %d, this version reads up to %d", ErrNewerFormat, version, formatVersion)
	}
	var incarnation string
	if _, err := fmt.Sscanf(string(b), "journal %d\nrecord %d\nkey %x\nincarnation %s\n", &version, &f.recordSize, &f.keyID, &incarnation); err != nil {
		return f, fmt.Errorf("%w: not a FORMAT file", errFormat)
	}
	raw, err := hex.DecodeString(incarnation)
	if err != nil || copy(f.incarnation[:], raw) != len(f.incarnation) || string(f.encode()) != string(b) {
		return f, fmt.Errorf("%w: the checksum does not match", errFormat)
	}
	return f, nil
}

// marshal is the format as heads and backups repeat it, so that FORMAT can be made again.
func (f format) marshal() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(f.recordSize))
	b = binary.LittleEndian.AppendUint64(b, f.keyID)
	return append(b, f.incarnation[:]...)
}

func (f *format) unmarshal(b []byte) bool {
	if len(b) != 12+len(f.incarnation) {
		return false
	}
	f.recordSize, f.keyID = int(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint64(b[4:])
	copy(f.incarnation[:], b[12:])
	return f.recordSize > 0 && f.recordSize <= maxRecordSize
}

func walName(seq uint64) string { return fmt.Sprintf("%016d%s", seq, walSuffix) }

func parseWalName(name string) (uint64, bool) {
	seq, err := strconv.ParseUint(strings.TrimSuffix(name, walSuffix), 10, 63)
	return seq, err == nil && seq > 0 && name == walName(seq)
}

// bucket is an interval of deadlines whose records share files.
type bucket struct {
	unit  byte // a letter in names
	index int64
}

// units are the widths of buckets: hours for what ends soon, so that a file goes soon after its records;
// days, so that there are few files; and far for everything else.
var units = []struct {
	letter byte
	width  int64 // seconds
	until  int64 // for deadlines less than this from now
}{
	{'h', 3600, 48 * 3600},
	{'d', 86400, 512 * 86400},
	{'f', 512 * 86400, 1<<63 - 1},
}

// maxFar bounds the number of far buckets; the last one, from the year 2380, never ends.
const maxFar = 255

func width(unit byte) int64 {
	for _, u := range units {
		if u.letter == unit {
			return u.width
		}
	}
	return 0
}

// bucketOf returns the bucket of a deadline that has not passed.
func bucketOf(deadline, now int64) bucket {
	for _, u := range units {
		if deadline < now+u.until || u.letter == 'f' {
			index := max(deadline, 0) / u.width
			if u.letter == 'f' {
				index = min(index, maxFar)
			}
			return bucket{u.letter, index}
		}
	}
	panic("unreachable: the last unit takes all")
}

func (b bucket) start() int64 { return b.index * width(b.unit) }

// end is the first second at which every deadline of the bucket has passed.
func (b bucket) end() int64 {
	if b.unit == 'f' && b.index == maxFar {
		return 1<<63 - 1
	}
	return (b.index + 1) * width(b.unit)
}

func compareBuckets(a, b bucket) int {
	return cmp.Or(cmp.Compare(a.unit, b.unit), cmp.Compare(a.index, b.index))
}

// expFile is a file of exp/ as the log describes it.
type expFile struct {
	bucket
	id      uint64 // in the name and in the frames; shared with nothing else
	length  int64  // what is behind belongs to a write that was not completed
	records int64
}

func (f expFile) name() string { return fmt.Sprintf("%c-%d-%d%s", f.unit, f.index, f.id, expSuffix) }

func parseExpName(name string) (expFile, bool) {
	parts := strings.SplitN(strings.TrimSuffix(name, expSuffix), "-", 4)
	if len(parts) != 3 || len(parts[0]) != 1 {
		return expFile{}, false
	}
	index, err1 := strconv.ParseUint(parts[1], 10, 40)
	id, err2 := strconv.ParseUint(parts[2], 10, 63)
	f := expFile{bucket: bucket{parts[0][0], int64(index)}, id: id}
	return f, err1 == nil && err2 == nil && width(f.unit) > 0 && name == f.name()
}

// manifest says which files count; it is a metadata entry, so a commit changes it as a whole.
type manifest struct {
	from  uint64 // segments with smaller numbers hold nothing that is not in files
	files []expFile
}

const manifestFile = 1 + 8 + 8 + 8 + 8

func (m manifest) marshal() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(m.files)*manifestFile), m.from)
	for _, f := range m.files {
		b = append(b, f.unit)
		for _, v := range []uint64{uint64(f.index), f.id, uint64(f.length), uint64(f.records)} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return b
}

func parseManifest(b []byte) (m manifest, ok bool) {
	if b == nil {
		return m, true
	}
	if len(b) < 8 || (len(b)-8)%manifestFile != 0 {
		return m, false
	}
	m.from = binary.LittleEndian.Uint64(b)
	for b = b[8:]; len(b) > 0; b = b[manifestFile:] {
		n := func(i int) uint64 { return binary.LittleEndian.Uint64(b[1+8*i:]) }
		f := expFile{bucket: bucket{b[0], int64(n(0))}, id: n(1), length: int64(n(2)), records: int64(n(3))}
		if width(f.unit) == 0 || f.index < 0 || f.length < 0 || f.records < 0 {
			return m, false
		}
		m.files = append(m.files, f)
	}
	return m, true
}

// prev is where the log comes from when a segment begins: the segment before, and how much of it counts.
// A segment number of 0 means nowhere.
type prev struct {
	segment uint64
	length  int64
}

func (p prev) marshal() []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, p.segment), uint64(p.length))
}

func parsePrev(b []byte) (prev, bool) {
	if len(b) != 16 {
		return prev{}, false
	}
	p := prev{binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:]))}
	return p, p.length >= 0
}

// directory is a journal's directory on a file system.
type directory struct {
	fs   FS
	root string
}

func newDirectory(fsys FS, root string) directory {
	if fsys == nil {
		fsys = osFS{}
	}
	return directory{fsys, root}
}

func (d directory) path(elem ...string) string {
	return path.Join(append([]string{d.root}, elem...)...)
}

// errFormat: FORMAT is there and cannot be read, or says what no version wrote.
var errFormat = errors.New("damaged")

// readFormat returns an error that matches fs.ErrNotExist if there is none, and errFormat if it is damaged.
func (d directory) readFormat() (format, error) {
	f, err := d.fs.Open(d.path(formatName), false)
	if err != nil {
		return format{}, err
	}
	defer f.Close()
	b := make([]byte, 1024)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return format{}, fmt.Errorf("%w: %w", errFormat, err)
	}
	return parseFormat(b[:n])
}

// writeFormat replaces FORMAT: written aside, made durable, renamed, and the name made durable.
func (d directory) writeFormat(v format) error {
	temp := d.path(formatName + tempSuffix)
	if err := d.fs.Remove(temp); err != nil && !notExist(err) {
		return err
	}
	f, err := d.fs.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(v.encode(), 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.fs.Rename(temp, d.path(formatName)); err != nil {
		return err
	}
	return d.fs.SyncDir(d.root)
}

// make makes the directory and those in it, durably. An earlier attempt may have made them without living to see
// them durable, so every name on the way is synced, as far as the directories of others allow it.
func (d directory) make() error {
	for _, sub := range []string{walDir, expDir} {
		if err := d.makeDir(d.path(sub)); err != nil {
			return err
		}
	}
	return nil
}

func (d directory) makeDir(name string) error {
	parent := path.Dir(name)
	if parent != name {
		if err := d.makeDir(parent); err != nil {
			return err
		}
	}
	_, err := d.fs.ReadDir(name)
	exists := err == nil || !notExist(err)
	if !exists {
		if err := d.fs.Mkdir(name); err != nil {
			return err
		}
	}
	if err := d.fs.SyncDir(parent); err != nil && !(exists && errors.Is(err, fs.ErrPermission)) {
		return err
	}
	return nil
}

// listing is what the directory holds, by name.
type listing struct {
	wal    []uint64           // ascending
	exp    map[string]expFile // by name; length is the file's number only
	buried map[string]bool    // names without their suffix
	other  []string           // leftovers of an interrupted step, with their directory
	maxID  uint64
}

func (d directory) list() (listing, error) {
	l := listing{exp: map[string]expFile{}, buried: map[string]bool{}}
	for _, sub := range []string{walDir, expDir} {
		names, err := d.fs.ReadDir(d.path(sub))
		if err != nil && !notExist(err) {
			return l, err
		}
		for _, name := range names {
			live := strings.TrimSuffix(name, buriedSuffix)
			seq, isWal := parseWalName(live)
			f, isExp := parseExpName(live)
			switch {
			case sub == walDir && isWal:
				l.maxID = max(l.maxID, seq)
				if live == name {
					l.wal = append(l.wal, seq)
				}
			case sub == expDir && isExp:
				l.maxID = max(l.maxID, f.id)
				if live == name {
					l.exp[name] = f
				}
			case strings.HasSuffix(name, tempSuffix):
				l.other = append(l.other, path.Join(sub, name))
				if seq, ok := parseWalName(strings.TrimSuffix(name, tempSuffix)); ok {
					l.maxID = max(l.maxID, seq)
				}
				continue
			default:
				continue // not ours
			}
			if live != name {
				l.buried[path.Join(sub, live)] = true
			}
		}
	}
	slices.Sort(l.wal)
	return l, nil
}

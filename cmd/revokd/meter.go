package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/revokd/revokd/cmd/revokd/internal/bulk"
)

// meter shows how far a bulk revocation is: a bar on a terminal, a line for each tenth elsewhere.
type meter struct {
	w        io.Writer
	terminal bool
	size     int64 // 0: not known
	begun    time.Time
	start    int64 // offset at begun
	drawn    time.Time
	tenth    int64
	onScreen bool
}

const (
	drawEvery = 100 * time.Millisecond // on a terminal
	quiet     = time.Second            // elsewhere what takes less shows nothing
)

func newMeter(w io.Writer, size, start int64, now time.Time) *meter {
	f, ok := w.(*os.File)
	m := &meter{w: w, terminal: ok && isatty.IsTerminal(f.Fd()), size: size, begun: now, start: start}
	if size > 0 {
		m.tenth = start * 10 / size
	}
	return m
}

func (m *meter) update(p bulk.Progress, now time.Time) {
	switch {
	case m.terminal && now.Sub(m.drawn) >= drawEvery:
		m.drawn, m.onScreen = now, true
		fmt.Fprintf(m.w, "\r%s\x1b[K", m.line(p, now))
	case !m.terminal && m.size > 0 && now.Sub(m.begun) > quiet && p.Offset*10/m.size > m.tenth:
		m.tenth = p.Offset * 10 / m.size
		fmt.Fprintln(m.w, m.line(p, now))
	}
}

// line is one state of the meter.
func (m *meter) line(p bulk.Progress, now time.Time) string {
	elapsed := now.Sub(m.begun).Seconds()
	moved := p.Offset - m.start
	if m.size == 0 || moved <= 0 || elapsed <= 0 {
		return fmt.Sprintf("%d lines", p.Line)
	}
	percent := p.Offset * 100 / m.size
	rate := float64(moved) / elapsed // bytes
	eta := time.Duration(float64(m.size-p.Offset) / rate * float64(time.Second))
	linesPerByte := float64(p.Line) / float64(p.Offset)
	s := fmt.Sprintf("%3d%%  %d lines  %.0f/s  %s left", percent, p.Line, rate*linesPerByte, ageText(eta))
	if !m.terminal {
		return s
	}
	const width = 30
	done := int(percent * width / 100)
	return "[" + strings.Repeat("=", done) + strings.Repeat(" ", width-done) + "] " + s
}

// clear takes the bar off the screen, so that a line can be written.
func (m *meter) clear() {
	if m.onScreen {
		fmt.Fprint(m.w, "\r\x1b[K")
		m.onScreen = false
	}
}

package api

import (
	"context"
	"net/http"
	"time"

	"github.com/revokd/revokd/internal/audit"
)

// backupPath is a plain path and no procedure: a backup is a file, for curl and for pipes, and its checksums are in it.
const backupPath = "/backup"

// backup streams a backup. One is made at a time. An error after the first byte cuts the answer off; what has arrived has no trailer then,
// and no reader takes it for a backup.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	out := &backupStream{server: s, w: w, control: http.NewResponseController(w)}
	err := s.writeBackup(r.Context(), out)
	t := s.trail(r.Context(), backupPath, "", r.RemoteAddr)
	_ = t.append(r.Context(), 1, func(_ int, e *audit.Event) { // what it says has left already
		*e = t.base
		e.Kind, e.Change, e.Outcome = "cluster", "backup", "done"
		if err != nil {
			t.failed(e, err)
		}
	})
	switch {
	case err == nil:
		s.metrics.called(backupPath, "ok", time.Since(began))
	case out.begun:
		o, _, _ := outcomeOf(err)
		s.metrics.called(backupPath, o.code.String(), time.Since(began))
		s.log.Warn("a backup was cut off", "error", err)
		panic(http.ErrAbortHandler)
	default:
		coded := s.refusal(err, backupPath)
		s.metrics.called(backupPath, coded.Code().String(), time.Since(began))
		_ = s.refuser.Write(w, r, coded)
	}
}

func (s *Server) writeBackup(ctx context.Context, out *backupStream) error {
	if err := s.auditor.ready(); err != nil {
		return err
	}
	select {
	case s.backups <- struct{}{}:
		defer func() { <-s.backups }()
	default:
		return errBackups
	}
	_ = out.control.SetReadDeadline(time.Time{}) // that of the request would end the answer
	info, err := s.node.Backup(ctx, out)
	if err != nil {
		return err
	}
	s.log.Info("backup", "records", info.Records, "bytes", info.Bytes)
	return nil
}

// backupStream writes to a caller who must keep reading.
type backupStream struct {
	server  *Server
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (b *backupStream) Write(p []byte) (int, error) {
	select {
	case <-b.server.stopping:
		return 0, errStopping
	default:
	}
	if !b.begun {
		b.begun = true
		b.w.Header().Set("Content-Type", "application/octet-stream")
	}
	// That of the server is for a whole answer.
	if err := b.control.SetWriteDeadline(time.Now().Add(b.server.cfg.Limits.Read)); err != nil {
		return 0, err
	}
	return b.w.Write(p)
}

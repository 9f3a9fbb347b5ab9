package client

import (
	"errors"
	"testing"

	"connectrpc.com/connect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// Another attempt is made where another node, or the same one later, may take what one has not.
func TestRetriable(t *testing.T) {
	for _, test := range []struct {
		code connect.Code
		kind string
		want bool
	}{
		{connect.CodeUnavailable, "not_ready", true},
		{connect.CodeUnknown, "", true},
		{connect.CodeResourceExhausted, "busy", true},
		{connect.CodeResourceExhausted, "disk_full", true},
		{connect.CodeResourceExhausted, "rate", true},
		{connect.CodeResourceExhausted, "quota", true},
		{connect.CodeResourceExhausted, "shapes", true},
		{connect.CodeInvalidArgument, "out_of_range", false},
		{connect.CodePermissionDenied, "", false},
	} {
		err := connect.NewError(test.code, errors.New("refused"))
		if test.kind != "" {
			d, failed := connect.NewErrorDetail(&revokdv1.ErrorDetail{Kind: test.kind})
			if failed != nil {
				t.Fatal(failed)
			}
			err.AddDetail(d)
		}
		if got := retriable(err); got != test.want {
			t.Errorf("%v %s: %v", test.code, test.kind, got)
		}
	}
}

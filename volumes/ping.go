package volumes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The kernel's NFS client asks a new server who it is with a lock held that every other
// mount of a server waits for, uninterruptibly (Linux, nfs4_discover_server_trunking):
// one server that accepts connections and is silent would keep all others from being
// mounted. So a server is asked for a sign of life before the kernel is.

const (
	pingEach = time.Second      // between two tries
	pingOne  = 10 * time.Second // of one try
)

// ping returns when an NFS server has answered a call of procedure 0, which does nothing
// (RFC 8881, 17.1; RFC 5531, 9). It ends with ctx.
func ping(ctx context.Context, address string) error {
	for {
		err := pingOnce(ctx, address)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return failf(ErrLate, "the server at %s does not answer: %w", address, err)
		case <-time.After(pingEach):
		}
	}
}

func pingOnce(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, pingOne)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	end, ok := ctx.Deadline()
	if !ok {
		return errors.New("no deadline")
	}
	if err := c.SetDeadline(end); err != nil {
		return err
	}
	const (
		id         = 0x42657274
		last       = 1 << 31 // fragment of a record
		call       = 0
		reply      = 1
		rpcVersion = 2
		nfs        = 100003
		version    = 4
		null       = 0
	)
	words := []uint32{last | 40, id, call, rpcVersion, nfs, version, null, 0, 0, 0, 0} // no credentials
	message := make([]byte, 0, 4*len(words))
	for _, w := range words {
		message = binary.BigEndian.AppendUint32(message, w)
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	var head [12]byte // record mark, id, kind
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head[4:]) != id || binary.BigEndian.Uint32(head[8:]) != reply {
		return fmt.Errorf("what answers at %s is no RPC server", address)
	}
	return nil
}

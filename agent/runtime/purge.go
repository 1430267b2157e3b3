package runtime

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
)

// Purge removes every image from the namespace, and then the namespace, unless something
// is still in it. Containers must be gone. It waits until the bytes are freed.
func (c *Client) Purge(ctx context.Context) error {
	ctx = c.ns(ctx)
	store := c.cd.ImageService()
	list, err := store.List(ctx)
	if err != nil {
		return classify(err, "")
	}
	var errs []error
	for _, i := range list {
		if err := store.Delete(ctx, i.Name, images.SynchronousDelete()); err != nil && !isNotFound(err) {
			errs = append(errs, classify(err, ""))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	err = c.cd.NamespaceService().Delete(ctx, c.cfg.Namespace)
	if isNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	return classify(err, "")
}

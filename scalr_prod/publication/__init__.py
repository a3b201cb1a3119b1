# SPDX-License-Identifier: Apache-2.0
"""Publication: accepted rows of a run become rows of the feature view, exactly once, and can be rolled back."""

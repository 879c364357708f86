"""Files of the host: safe opening, owners, durable writes, free space, sparse copies, and the text of their errors.

Imports blockfs.core, blockfs.guests, cext.
"""
